"""The weights of tensors that two checkpoints both store, read side by side, and their difference."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.task_vectors.difference import add_delta, difference
from flexswitch.merging.task_vectors.task_vector import block_ranges

_PIECE = 1 << 10  # entries
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples fill an interval evenly


class StoredWeights:
    """Pairs of tensors of a base and a fine-tuned checkpoint.

    names: base name → fine-tuned name. source names the fine-tuned checkpoint in messages. Rows that only
    the base has do not change.
    """

    def __init__(
        self, base: Checkpoint, finetuned: Checkpoint, names: Mapping[str, str], source: str
    ) -> None:
        self._base, self._finetuned, self._names, self._source = base, finetuned, names, source

    def blocks(self, name: str, size: int | None = None) -> Iterator[FloatArray]:
        """Yields a tensor's delta. Raises: InputError if it is not finite."""
        for start, base, finetuned in self._weights(name, size):
            delta, finite = difference(base, finetuned)
            if not finite:
                raise InputError(
                    f"{self._source}: tensor '{name}' minus the base's is not finite near entry {start:,}; "
                    "one of the two holds NaN, infinite or huge weights"
                )
            yield delta

    def sample(self, name: str) -> FloatArray:
        """Returns a piece of the delta from each whole block of a large tensor, (pieces, entries)."""
        pieces = []
        for index, (start, stop) in enumerate(block_ranges(self._base.tensors[name].entries)):
            room = stop - start - _PIECE
            if room >= 0:  # at places that share no column
                at = start + int((index + 1) * _GOLDEN % 1 * room)
                pieces.append(difference(*self._read(name, at, at + _PIECE))[0])
        return np.array(pieces, np.float32).reshape(-1, _PIECE)

    def exact(self, name: str) -> tuple[NDArray[np.int64], FloatArray]:
        """Returns positions and float32 values of the fine-tuned weights that base + delta misses."""
        positions, values = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for start, stored_base, stored_finetuned in self._weights(name):
            base, finetuned = stored_base.to(torch.float32), stored_finetuned.to(torch.float32)
            same = base.view(torch.int32) == finetuned.view(torch.int32)
            found = add_delta(base, torch.where(same, 0, finetuned - base))
            # Compared as bits, because 0 and -0 are equal as numbers.
            missed = torch.nonzero(found.view(torch.int32) != finetuned.view(torch.int32)).view(-1)
            positions.append(missed.numpy() + start)
            values.append(finetuned[missed].numpy())
        return np.concatenate(positions), np.concatenate(values)

    def read_ahead(self, name: str) -> None:
        """Asks the system to have a tensor's bytes of both checkpoints in memory soon."""
        self._base.read_ahead(name)
        self._finetuned.read_ahead(self._names[name])

    def _weights(self, name: str, size: int | None = None) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields (start, base, fine-tuned) blocks in their own dtypes."""
        for start, stop in block_ranges(self._base.tensors[name].entries, size):
            yield start, *self._read(name, start, stop)

    def _read(self, name: str, start: int, stop: int) -> tuple[Tensor, Tensor]:
        other = self._names[name]
        available = self._finetuned.tensors[other].entries
        base = self._base.read(name, start, stop)
        finetuned = self._finetuned.read(other, min(start, available), min(stop, available))
        if len(finetuned) < len(base):
            finetuned = torch.cat([finetuned, base[len(finetuned) :]])
        return base, finetuned


def changed_tensors(base: Checkpoint, finetuned: Checkpoint, names: Mapping[str, str]) -> list[str]:
    """Returns the base names of those tensors, such as buffers, that differ in dtype, shape or any value."""

    def is_same(name: str, other: str) -> bool:
        same_header = base.tensors[name] == finetuned.tensors[other]
        return same_header and torch.equal(base.read(name), finetuned.read(other))

    return [name for name, other in names.items() if not is_same(name, other)]
