"""What a method that looks at the whole task vector first takes and gives: a job, and the plan for it."""

from collections.abc import Callable
from dataclasses import dataclass

from flexswitch.merging.compression.compressed import Compressed, Delta


@dataclass(frozen=True)
class Job:
    """What a method may know beside the task vector. jobs: threads; no result may depend on them."""

    task: str
    jobs: int = 1


@dataclass(frozen=True)
class Plan:
    """How to compress each tensor of one task vector, and with which effort to store it (see `store`)."""

    compress: Callable[[Delta], Compressed]
    effort: str = "fast"
