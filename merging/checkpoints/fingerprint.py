"""Tells one base from another: a hash of all its tensors, and one of a few slices of each."""

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from flexswitch.codecs.errors import ArtifactError, InputError
from flexswitch.codecs.format.records import BaseIdentity
from flexswitch.codecs.threads import DEFAULT_JOBS, map_in_order
from flexswitch.merging.checkpoints.checkpoint import Checkpoint

_CHUNK_ENTRIES = 1 << 22
_READERS = min(8, DEFAULT_JOBS)
_SLICES, _SLICE_ENTRIES = 16, 64


# The digests of each base that this process has read, by its files, their sizes and times of change.
_DIGESTS: dict[tuple[tuple[str, int, int], ...], dict[str, str]] = {}


def known_digests(base: Checkpoint) -> dict[str, str]:
    """Returns tensor name → SHA-256 of a base's tensors that this process has read whole; it may be added to.

    So a recipe that compresses many tasks hashes their base once.
    """
    if not base.files:  # it is in memory alone
        return {}
    stats = [(file, file.stat()) for file in base.files]
    key = tuple((str(file.resolve()), stat.st_size, stat.st_mtime_ns) for file, stat in stats)
    return _DIGESTS.setdefault(key, {})


def forget_digests() -> None:
    """Makes this process hash bases anew."""
    _DIGESTS.clear()


def identify(base: Checkpoint, digests: dict[str, str] | None = None) -> BaseIdentity:
    """Returns a base's full identity; reads every byte of it, but of the tensors in `digests`.

    digests: tensor name → SHA-256 of its bytes, as hexadecimal digits; those that were missing are added.
    """
    full = fingerprint(base, {} if digests is None else digests)
    return BaseIdentity(fingerprint=full, quick_fingerprint=sample_fingerprint(base), id=base.hub_id)


def fingerprint(base: Checkpoint, digests: dict[str, str] | None = None) -> str:
    """Returns the SHA-256 over (name, dtype, shape, SHA-256 of the bytes) of all tensors in name order."""
    return _hash_tensors(
        base, lambda name: _chunks(base.tensors[name].entries), {} if digests is None else digests
    )


def sample_fingerprint(base: Checkpoint) -> str:
    """Returns the same hash over 16 evenly spaced slices of 64 entries of each tensor."""
    return _hash_tensors(base, lambda name: _slices(base.tensors[name].entries), {})


def byte_view(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Returns a tensor's bytes; they share its memory where it is contiguous."""
    return tensor.contiguous().view(torch.uint8).numpy()


def check_base(base: Checkpoint, expected: BaseIdentity, owner: str, full: bool = False) -> None:
    """Checks that `base` is the one a task vector was made from, by its slices or by every byte.

    Raises: InputError naming both, or with `full` ArtifactError.
    """
    found = fingerprint(base) if full else sample_fingerprint(base)
    wanted = expected.fingerprint if full else expected.quick_fingerprint
    if found != wanted:
        known_as = f" ({expected.id})" if expected.id else ""
        error = ArtifactError if full else InputError
        raise error(
            f"{base.source}: is not the base of {owner}: its {'' if full else 'sampled '}fingerprint is "
            f"{found[:12]}, expected {wanted[:12]}{known_as}; give the base it was made from"
        )


def _hash_tensors(
    base: Checkpoint, ranges: Callable[[str], Iterator[tuple[int, int]]], digests: dict[str, str]
) -> str:
    def content(name: str) -> bytes:
        if name not in digests:
            digest = hashlib.sha256()
            for start, stop in ranges(name):
                digest.update(byte_view(base.read(name, start, stop)).data)
            digests[name] = digest.hexdigest()
        info = base.tensors[name]
        shape = ",".join(map(str, info.shape))
        return f"{name}\0{info.dtype}\0{shape}\0{digests[name]}\n".encode()

    total = hashlib.sha256()
    for line in map_in_order(content, base.tensors, _READERS):  # hashing and reading release the GIL
        total.update(line)
    return total.hexdigest()


def _chunks(entries: int) -> Iterator[tuple[int, int]]:
    for start in range(0, entries, _CHUNK_ENTRIES):
        yield start, min(entries, start + _CHUNK_ENTRIES)


def _slices(entries: int) -> Iterator[tuple[int, int]]:
    if entries <= _SLICES * _SLICE_ENTRIES:
        yield 0, entries
        return
    for index in range(_SLICES):
        start = index * (entries - _SLICE_ENTRIES) // (_SLICES - 1)
        yield start, start + _SLICE_ENTRIES
