"""What a reader of a whole task vector may use to be quick, and to tell that the vector is still the same."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.hashing import HashingCheckpoint


@dataclass(frozen=True)
class ReadingHints:
    """How a task vector is read; no delta depends on it.

    files: the files it is read from. base_digests: tensor name → BLAKE3 of those tensors of the base that
    have been hashed already; others may be added. read_ahead: asks the system to have the bytes of a tensor
    in memory soon. recomputing_is_cheap: whether computing a delta again costs no more than reading a copy
    of it from memory. sample: returns pieces of a large tensor's delta, (pieces, entries); None where they
    can't be read by themselves.
    """

    files: tuple[Path, ...] = ()
    base_digests: dict[str, str] = field(default_factory=dict)
    read_ahead: Callable[[str], None] = lambda name: None
    recomputing_is_cheap: bool = False
    sample: Callable[[str], FloatArray] | None = None

    def file_stamps(self) -> list[tuple[int, int]]:
        """Returns the size and the modification time, in nanoseconds, of each file."""
        stats = [file.stat() for file in self.files]
        return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


def pair_hints(
    base: Checkpoint,
    finetuned: Checkpoint,
    read_ahead: Callable[[str], None],
    sample: Callable[[str], FloatArray] | None = None,
) -> ReadingHints:
    """Returns the hints of a task vector between two checkpoints; one with a sample is cheap to recompute."""
    digests = base.digests if isinstance(base, HashingCheckpoint) else {}
    return ReadingHints((*base.files, *finetuned.files), digests, read_ahead, sample is not None, sample)
