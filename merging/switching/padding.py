"""The padding of a batch: no task has a share in it, and layers skip it where there is much of it."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.switching.activations import Ids

# The share of padding above which gathering the other tokens takes less time than computing all.
_MIN_SHARE = 0.15


class Padding:
    """The padding of a batch. mask: (row, token), False for padding; least: the share that is skipped."""

    def __init__(self, mask: NDArray[np.bool_], least: float = _MIN_SHARE) -> None:
        self.mask = mask
        self._real: Tensor | None = None
        self._padded: set[int] = set()
        self._positions = np.arange(mask.size).reshape(mask.shape)
        if mask.size and 1 - mask.mean() >= least:
            self._real = torch.from_numpy(np.flatnonzero(mask))
            self._positions = (np.cumsum(mask) - 1).reshape(mask.shape)

    @property
    def removed(self) -> int:
        """The number of tokens that layers do not compute."""
        return 0 if self._real is None else int(self.mask.size) - len(self._real)

    def covers(self, per_row: int) -> bool:
        """Returns whether the mask is for a layer with this many tokens a row."""
        return bool(self.mask.shape[1] == per_row)

    def positions(self, rows: Ids, factors: FloatArray) -> tuple[Ids, FloatArray]:
        """Returns the positions of some rows' tokens in the result of `unpad`, and each token's factor."""
        own = self.mask[rows]
        return self._positions[rows][own], np.repeat(factors, own.sum(1))

    def unpad(self, tokens: Tensor) -> Tensor:
        """Returns the tokens (token, …) that layers compute: all of them, or those that are not padding."""
        return tokens if self._real is None else tokens.index_select(0, self._real.to(tokens.device))

    def aligned(self, tensor: Tensor) -> Tensor | None:
        """Returns a tensor (row or 1, token or 1, …) broadcast to the tokens of `unpad`, (token or 1, …).

        Returns None for other shapes.
        """
        rows, tokens = self.mask.shape
        if len(tensor) not in (1, rows) or tensor.shape[1] not in (1, tokens):
            return None
        if tensor.shape[:2] == (rows, tokens):
            return self.unpad(tensor.flatten(0, 1))
        if tensor.shape[:2] == (1, 1):
            return tensor[0]
        lines, ids = (tensor[:, 0], self._ids[0]) if tensor.shape[1] == 1 else (tensor[0], self._ids[1])
        return lines.index_select(0, ids.to(tensor.device))

    @property
    def rows(self) -> Ids:
        """The row of each token of `unpad`, (token,)."""
        rows: Ids = self._ids[0].numpy()
        return rows

    @cached_property
    def _ids(self) -> tuple[Tensor, Tensor]:
        """The row of each token of `unpad`, and its index in the row."""
        positions = np.arange(self.mask.size) if self._real is None else self._real.numpy()
        rows, tokens = np.divmod(positions, self.mask.shape[1])
        return torch.from_numpy(rows), torch.from_numpy(tokens)

    def pad(self, tokens: Tensor) -> Tensor:
        """Returns the tokens of `unpad` as (row, token, …), with zeros for those that it removed."""
        rest = tokens.shape[1:]
        if self._real is None:
            return tokens.view(*self.mask.shape, *rest)
        every = tokens.new_zeros(self.mask.size, *rest)
        every.index_copy_(0, self._real.to(tokens.device), tokens)
        return every.view(*self.mask.shape, *rest)

    def note_padded(self, tensor: Tensor) -> None:
        """Remembers a padded tensor: its version does not count every change made through it."""
        self._padded.add(tensor.untyped_storage().data_ptr())

    def is_padded(self, tensor: Tensor) -> bool:
        """Returns whether a tensor may share the memory of one that `note_padded` was given."""
        return tensor.untyped_storage().data_ptr() in self._padded


def token_mask(batch: Any, module: nn.Module) -> NDArray[np.bool_] | None:
    """Returns the attention mask of a batch, (row, token), False for padding; None without one.

    Also None where the batch holds other tokens too, such as an image's or a decoder's: a layer may be given
    either kind.
    """
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is None or mask.dim() != 2 or getattr(config_of(module), "is_encoder_decoder", False):
        return None
    others = [tensor for tensor in batch.values() if isinstance(tensor, Tensor) and tensor.dim() > 1]
    if any(tensor.shape[:2] != mask.shape for tensor in others):
        return None
    found: NDArray[np.bool_] = mask.cpu().numpy() != 0
    return found


def config_of(module: nn.Module) -> Any:
    """Returns the configuration of the first transformers model inside, or None."""
    return next((part.config for part in module.modules() if hasattr(part, "config")), None)
