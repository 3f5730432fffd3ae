"""The padding of a batch: no task has a part in it, and where there is much of it layers leave it out."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flexswitch.codecs.sparse import FloatArray

Ids = NDArray[np.int64]

# A share of padding from which moving the other tokens together takes less than computing it all.
_WORTH = 0.15


class Padding:
    """marks: (row, token), False for padding."""

    def __init__(self, marks: NDArray[np.bool_]) -> None:
        self.marks = marks
        self._real: Tensor | None = None
        self._places = np.arange(marks.size).reshape(marks.shape)
        if marks.size and 1 - marks.mean() >= _WORTH:
            self._real = torch.from_numpy(np.flatnonzero(marks))
            self._places = (np.cumsum(marks) - 1).reshape(marks.shape)

    @property
    def left_out(self) -> int:
        """How many tokens layers do not compute."""
        return 0 if self._real is None else int(self.marks.size) - len(self._real)

    def fits(self, each: int) -> bool:
        """Returns whether a layer with so many tokens a row is given those of the batch."""
        return bool(self.marks.shape[1] == each)

    def places(self, rows: Ids, factors: FloatArray) -> tuple[Ids, FloatArray]:
        """Returns where some rows' tokens lie among those that `taken` gives, and each one's row's factor."""
        own = self.marks[rows]
        return self._places[rows][own], np.repeat(factors, own.sum(1))

    def taken(self, tokens: Tensor) -> Tensor:
        """Returns what layers compute of (token, …): all of it, or what is no padding."""
        return tokens if self._real is None else tokens.index_select(0, self._real.to(tokens.device))

    def whole(self, taken: Tensor) -> Tensor:
        """Returns all tokens, those left out as zeros."""
        if self._real is None:
            return taken
        every = taken.new_zeros(self.marks.size, *taken.shape[1:])
        return every.index_copy_(0, self._real.to(taken.device), taken)


def marks_of(batch: Any, module: nn.Module) -> NDArray[np.bool_] | None:
    """Returns which tokens are no padding, (row, token), where the batch tells.

    Where it holds tokens of another kind too, as an image's or a decoder's, a layer's could be either: None.
    """
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is None or mask.dim() != 2 or getattr(_config_of(module), "is_encoder_decoder", False):
        return None
    others = [each for each in batch.values() if isinstance(each, Tensor) and each.dim() > 1]
    if any(each.shape[:2] != mask.shape for each in others):
        return None
    marks: NDArray[np.bool_] = mask.cpu().numpy() != 0
    return marks


def _config_of(module: nn.Module) -> Any:
    """Returns the configuration of the first transformers model inside, None without one."""
    return next((each.config for each in module.modules() if hasattr(each, "config")), None)
