"""Input and output of a compression method: a tensor's delta in blocks, and its kept entries."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.sparse import LEVEL_DTYPES, FloatArray, Levels, SparseTensor


@dataclass(frozen=True)
class Delta:
    """The change of one tensor. `read` returns its flat float32 blocks in order and can be called again.

    Every block but the last has a multiple of 8 entries. Random draws depend on a seed, the task and the
    tensor's name only.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Iterable[FloatArray]]
    task: str = ""


class Squares(NamedTuple):
    """Σ (τ − τ̂)² and Σ τ² over the entries of a tensor, in float64."""

    error: float
    total: float


@dataclass(frozen=True, eq=False)
class Compressed:
    """The kept entries of a tensor, the float32 scale of their levels, and its zero point, if it has one.

    shape: of the matrix whose two factors are kept, one above the other; None for the tensor itself.
    squares: how far it is from the delta, where the method finds that on its way; else None.
    """

    sparse: SparseTensor
    scale: float
    zero: int | None = None
    shape: tuple[int, ...] | None = None
    squares: Squares | None = None


def assemble(
    shape: tuple[int, ...], masks: list[NDArray[np.uint8]], levels: list[Levels], bits: int
) -> SparseTensor:
    """Returns the sparse tensor of packed mask blocks and level blocks."""
    mask = np.concatenate(masks) if masks else np.empty(0, np.uint8)
    joined = np.concatenate(levels) if levels else np.empty(0, LEVEL_DTYPES[bits])
    return SparseTensor(shape, mask, joined.astype(LEVEL_DTYPES[bits], copy=False), bits)
