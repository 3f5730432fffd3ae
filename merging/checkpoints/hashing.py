"""A checkpoint that hashes its tensors while they are read: its fingerprint needs no second reading."""

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.merging.checkpoints.checkpoint import Checkpoint

_CHUNK_ENTRIES = 1 << 22

# The digests of each base that this process has read, by its files, their sizes and modification times.
_DIGESTS: dict[tuple[tuple[str, int, int], ...], dict[str, str]] = {}


class HashingCheckpoint:
    """An open checkpoint whose reads also compute the SHA-256 of each tensor.

    A tensor's digest is known once its entries have been read in order from the first to the last.
    digests: tensor name → SHA-256 of its bytes, in hexadecimal; shared by all openings of the same
    unchanged files in this process, so that a base of many tasks is hashed once.
    """

    def __init__(self, checkpoint: Checkpoint, digests: dict[str, str] | None = None) -> None:
        self.source, self.directory, self.hub_id = checkpoint.source, checkpoint.directory, checkpoint.hub_id
        self.notes = checkpoint.notes
        self.files, self.tensors, self.aliases = checkpoint.files, checkpoint.tensors, checkpoint.aliases
        self.digests = _known_digests(checkpoint) if digests is None else digests
        self._checkpoint = checkpoint
        self._started: dict[str, tuple[Any, int]] = {}  # tensor → hash and count of the entries read so far

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns entries [start, stop) of a tensor, flat, in its own dtype, and hashes them."""
        entries = self._checkpoint.read(name, start, stop)
        if name not in self.digests:
            self._hash(name, start, entries)
        return entries

    def read_ahead(self, name: str) -> None:
        """Asks the system to have a tensor's bytes in memory soon."""
        self._checkpoint.read_ahead(name)

    def digest(self, name: str) -> str:
        """Returns the SHA-256 of a tensor; reads the tensor if that is not known yet."""
        if name not in self.digests:
            digest, count = hashlib.sha256(), self.tensors[name].entries
            for start in range(0, count, _CHUNK_ENTRIES):
                entries = self._checkpoint.read(name, start, min(count, start + _CHUNK_ENTRIES))
                digest.update(byte_view(entries).data)
            self.digests[name] = digest.hexdigest()
        return self.digests[name]

    def _hash(self, name: str, start: int, entries: Tensor) -> None:
        # Taken out while it is updated: a second thread reading the same tensor then leaves it alone.
        digest, position = self._started.pop(name, (None, 0))
        if start == 0:
            digest, position = hashlib.sha256(), 0
        if digest is None or start != position:
            return
        digest.update(byte_view(entries).data)
        position += len(entries)
        if position == self.tensors[name].entries:
            self.digests[name] = digest.hexdigest()
        else:
            self._started[name] = digest, position


def forget_digests() -> None:
    """Makes this process hash bases anew."""
    _DIGESTS.clear()


def byte_view(tensor: Tensor) -> NDArray[np.uint8]:
    """Returns a tensor's bytes; they share its memory if it is contiguous."""
    return tensor.contiguous().view(torch.uint8).numpy()


def _known_digests(checkpoint: Checkpoint) -> dict[str, str]:
    if not checkpoint.files:  # it exists in memory only
        return {}
    stats = [(file, file.stat()) for file in checkpoint.files]
    key = tuple((str(file.resolve()), stat.st_size, stat.st_mtime_ns) for file, stat in stats)
    return _DIGESTS.setdefault(key, {})
