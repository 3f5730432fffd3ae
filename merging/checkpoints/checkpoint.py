"""What an open checkpoint is: headers known, weights read block by block."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as its header describes it: dtype by its safetensors name."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def entries(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


class Checkpoint(Protocol):
    """An open checkpoint.

    source names it in messages; tensors holds the headers in name order; aliases maps the further
    names of a tied tensor to the one in `tensors`; directory contains config and tokenizer; notes say how it
    was opened.
    """

    source: str
    directory: Path | None
    hub_id: str | None
    notes: list[str]

    @property
    def files(self) -> Sequence[Path]:
        """The files of the weights."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The headers in name order."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """The further names of tied tensors."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> "Tensor":
        """Returns entries [start, stop) of a tensor, flat, in its own dtype; the caller may change them."""

    def read_ahead(self, name: str) -> None:
        """Asks the system to have a tensor's bytes in memory soon; a hint that may have no effect."""
