"""The padding of a batch: no task has a part in it, and where there is much of it, it is left out."""

from collections.abc import Mapping
from functools import cached_property
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
        self._wholes: set[int] = set()
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

    def meeting(self, tensor: Tensor) -> Tensor | None:
        """Returns what of (row or 1, token or 1, …) meets the tokens that `taken` gives, (token or 1, …).

        None for other shapes.
        """
        rows, tokens = self.marks.shape
        if len(tensor) not in (1, rows) or tensor.shape[1] not in (1, tokens):
            return None
        if tensor.shape[:2] == (rows, tokens):
            return self.taken(tensor.flatten(0, 1))
        if tensor.shape[:2] == (1, 1):
            return tensor[0]
        lines, ids = (tensor[:, 0], self._ids[0]) if tensor.shape[1] == 1 else (tensor[0], self._ids[1])
        return lines.index_select(0, ids.to(tensor.device))

    @cached_property
    def _ids(self) -> tuple[Tensor, Tensor]:
        """The row and the place in it of each token that `taken` gives."""
        places = np.arange(self.marks.size) if self._real is None else self._real.numpy()
        rows, tokens = np.divmod(places, self.marks.shape[1])
        return torch.from_numpy(rows), torch.from_numpy(tokens)

    def whole(self, taken: Tensor) -> Tensor:
        """Returns all tokens, (row, token, …), those left out as zeros."""
        rest = taken.shape[1:]
        if self._real is None:
            return taken.view(*self.marks.shape, *rest)
        every = taken.new_zeros(self.marks.size, *rest)
        every.index_copy_(0, self._real.to(taken.device), taken)
        return every.view(*self.marks.shape, *rest)

    def note_whole(self, tensor: Tensor) -> None:
        """Notes what an unpadded tensor shows itself as: not all changes in it count as its versions."""
        self._wholes.add(tensor.untyped_storage().data_ptr())

    def is_noted(self, tensor: Tensor) -> bool:
        """Returns whether a tensor may be one of those that were noted, or a view of one."""
        return tensor.untyped_storage().data_ptr() in self._wholes


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
