"""Tells one base from another by a hash of all its tensors."""

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.records import BaseIdentity
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.hashing import HashingCheckpoint


def identify(base: Checkpoint) -> BaseIdentity:
    """Returns a base's identity: its fingerprint and its hub id. Raises: InputError if its files change."""
    return BaseIdentity(fingerprint=fingerprint(base), id=base.hub_id)


def fingerprint(base: Checkpoint) -> str:
    """Returns a base's fingerprint; reads the whole base, unless it is remembered."""
    return (base if isinstance(base, HashingCheckpoint) else HashingCheckpoint(base)).fingerprint()


def check_base(base: Checkpoint, expected: BaseIdentity, owner: str) -> None:
    """Raises: InputError naming both fingerprints unless a task vector was made from `base`."""
    found = fingerprint(base)
    if found != expected.fingerprint:
        raise InputError(
            f"{base.source}: is not the base of {owner}: its fingerprint is {found[:12]}, expected "
            f"{expected.fingerprint[:12]}; give the base it was made from"
            + (f", --base {expected.id}" if expected.id else "")
        )
