"""A base whose tensors are hashed while they are read: its fingerprint needs no second reading."""

from pathlib import Path

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.threads import DEFAULT_JOBS, map_in_order
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.known_fingerprints import (
    FileStamps,
    file_stamps,
    known_fingerprint,
    remember_fingerprint,
)
from flexswitch.merging.checkpoints.opening import open_checkpoint

_READERS = min(8, DEFAULT_JOBS)
_CHUNK_ENTRIES = 1 << 18


class HashingCheckpoint:
    """An open checkpoint whose reads also compute the BLAKE3 of each tensor.

    A tensor's digest is known once its entries have been read in order from the first to the last. Where the
    files' fingerprint is remembered, nothing is hashed; `remembers` says whether it may be. digests: tensor
    name → BLAKE3 of its bytes, in hexadecimal.
    """

    def __init__(self, checkpoint: Checkpoint, remembers: bool = True) -> None:
        self.source, self.directory, self.hub_id = checkpoint.source, checkpoint.directory, checkpoint.hub_id
        self.notes = checkpoint.notes
        self.files, self.tensors, self.aliases = checkpoint.files, checkpoint.tensors, checkpoint.aliases
        self.digests: dict[str, str] = {}
        self._checkpoint = checkpoint
        self._started: dict[str, tuple[blake3, int]] = {}  # tensor → hash and count of its first entries
        self._remembers = remembers and bool(self.files)
        self._stamps = self._current_stamps()
        self.known_fingerprint = known_fingerprint(self._stamps) if self._remembers else None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns entries [start, stop) of a tensor, flat, in its own dtype, and hashes them."""
        entries = self._checkpoint.read(name, start, stop)
        if self.known_fingerprint is None and name not in self.digests:
            self._hash(name, start, entries)
        return entries

    def read_ahead(self, name: str) -> None:
        """Asks the system to have a tensor's bytes in memory soon."""
        self._checkpoint.read_ahead(name)

    def fingerprint(self) -> str:
        """Returns the base's fingerprint; reads the tensors whose digest is not known yet.

        FORMAT.md defines it. Raises: InputError if a file has changed since the checkpoint was opened.
        """
        if self.known_fingerprint is None:
            total = blake3()
            for line in map_in_order(self._line, self.tensors, _READERS):  # hashing releases the GIL
                total.update(line)
            self.known_fingerprint = total.hexdigest()
        if self._current_stamps().key != self._stamps.key:
            raise InputError(f"{self.source}: its files changed while they were read; run the command again")
        if self._remembers:
            remember_fingerprint(self._stamps, self.known_fingerprint)
        return self.known_fingerprint

    def _current_stamps(self) -> FileStamps:
        """Returns the stamps of all files that the tensors depend on."""
        config = self.directory / "config.json" if self.directory else None  # tied and quantised weights
        return file_stamps([*self.files, *([config] if config and config.is_file() else [])])

    def _line(self, name: str) -> bytes:
        info = self.tensors[name]
        shape = ",".join(map(str, info.shape))
        return f"{name}\0{info.dtype}\0{shape}\0{self._digest(name)}\n".encode()

    def _digest(self, name: str) -> str:
        if name not in self.digests:
            digest, count = blake3(), self.tensors[name].entries
            for start in range(0, count, _CHUNK_ENTRIES):
                entries = self._checkpoint.read(name, start, min(count, start + _CHUNK_ENTRIES))
                digest.update(byte_view(entries).data)
            self.digests[name] = digest.hexdigest()
        return self.digests[name]

    def _hash(self, name: str, start: int, entries: Tensor) -> None:
        # Taken out while it is updated: a second thread reading the same tensor then leaves it alone. Of
        # several readers of one tensor, those behind the first leave it as it is.
        digest, position = self._started.pop(name, (blake3(), 0))
        if start == 0 and len(entries) > position:
            digest, position = blake3(), 0
        if start != position:
            if position:
                self._started[name] = digest, position
            return
        digest.update(byte_view(entries).data)
        position += len(entries)
        if position == self.tensors[name].entries:
            self.digests[name] = digest.hexdigest()
        else:
            self._started[name] = digest, position


def open_base(source: str | Path) -> HashingCheckpoint:
    """Opens a base by its path or hub id. Raises: InputError."""
    return HashingCheckpoint(open_checkpoint(source))


def byte_view(tensor: Tensor) -> NDArray[np.uint8]:
    """Returns a tensor's bytes; they share its memory if it is contiguous."""
    return tensor.contiguous().view(torch.uint8).numpy()
