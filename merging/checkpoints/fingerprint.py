"""Tells one base from another: a hash of all its tensors, and a quick one of a few slices of each."""

import hashlib
from collections.abc import Callable, Iterator

from flexswitch.codecs.errors import ArtifactError, InputError
from flexswitch.codecs.format.records import BaseIdentity
from flexswitch.codecs.threads import DEFAULT_JOBS, map_in_order
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.hashing import HashingCheckpoint, byte_view

_READERS = min(8, DEFAULT_JOBS)
_SLICES, _SLICE_ENTRIES = 16, 64


def identify(base: Checkpoint) -> BaseIdentity:
    """Returns a base's identity: its full and its quick fingerprint, and its hub id."""
    return BaseIdentity(
        fingerprint=fingerprint(base), quick_fingerprint=quick_fingerprint(base), id=base.hub_id
    )


def fingerprint(base: Checkpoint) -> str:
    """Returns the SHA-256 over (name, dtype, shape, SHA-256 of the bytes) of all tensors in name order.

    Reads the whole base; of a `HashingCheckpoint` only the tensors whose digest is not known yet.
    """
    hashing = base if isinstance(base, HashingCheckpoint) else HashingCheckpoint(base, {})
    return _hash_tensors(base, hashing.digest)


def quick_fingerprint(base: Checkpoint) -> str:
    """Returns the same hash over 16 evenly spaced slices of 64 entries of each tensor."""

    def digest(name: str) -> str:
        total = hashlib.sha256()
        for start, stop in _slices(base.tensors[name].entries):
            total.update(byte_view(base.read(name, start, stop)).data)
        return total.hexdigest()

    return _hash_tensors(base, digest)


def check_base(base: Checkpoint, expected: BaseIdentity, owner: str, full: bool = False) -> None:
    """Checks that `base` is the one a task vector was made from, by its slices or by every byte.

    Raises: InputError naming both, or with `full` ArtifactError.
    """
    found = fingerprint(base) if full else quick_fingerprint(base)
    wanted = expected.fingerprint if full else expected.quick_fingerprint
    if found != wanted:
        known_as = f" ({expected.id})" if expected.id else ""
        error = ArtifactError if full else InputError
        raise error(
            f"{base.source}: is not the base of {owner}: its {'' if full else 'quick '}fingerprint is "
            f"{found[:12]}, expected {wanted[:12]}{known_as}; give the base it was made from"
        )


def _hash_tensors(base: Checkpoint, digest: Callable[[str], str]) -> str:
    def line(name: str) -> bytes:
        info = base.tensors[name]
        shape = ",".join(map(str, info.shape))
        return f"{name}\0{info.dtype}\0{shape}\0{digest(name)}\n".encode()

    total = hashlib.sha256()
    for part in map_in_order(line, base.tensors, _READERS):  # hashing and reading release the GIL
        total.update(part)
    return total.hexdigest()


def _slices(entries: int) -> Iterator[tuple[int, int]]:
    if entries <= _SLICES * _SLICE_ENTRIES:
        yield 0, entries
        return
    for index in range(_SLICES):
        start = index * (entries - _SLICE_ENTRIES) // (_SLICES - 1)
        yield start, start + _SLICE_ENTRIES
