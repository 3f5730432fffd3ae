"""What a method that looks at the whole task vector first takes and gives: a job, and the plan for it."""

from collections.abc import Callable
from dataclasses import dataclass

from flexswitch.codecs.format.records import ArtifactHeader, LearningRecord
from flexswitch.merging.compression.compressed import Compressed, Delta
from flexswitch.merging.flex_switch.learn import Progress
from flexswitch.merging.flex_switch.lesson import Classroom
from flexswitch.merging.flex_switch.saved import Saving


@dataclass(frozen=True)
class Guidance:
    """What a method that learns is given beside the task vector.

    classroom: the base and the exemplars; saving: where the state is kept. on_step and on_note hear of each
    step, and of what the user should know.
    """

    classroom: Classroom | None = None
    saving: Saving | None = None
    on_step: Callable[[Progress], None] = lambda progress: None
    on_note: Callable[[str], None] = lambda note: None


NO_GUIDANCE = Guidance()


@dataclass(frozen=True)
class Job:
    """What a method may know beside the task vector.

    header: what the artifact will say of itself, its base still unknown. jobs: threads; no result may depend
    on them.
    """

    header: ArtifactHeader
    jobs: int = 1
    guidance: Guidance = NO_GUIDANCE

    @property
    def task(self) -> str:
        """The task's name."""
        return self.header.name


@dataclass(frozen=True)
class Plan:
    """How to compress each tensor of one task vector, and with which effort to store it (see `store`).

    learning: the record that the artifact is to carry, of a method that learned.
    """

    compress: Callable[[Delta], Compressed]
    effort: str = "fast"
    learning: LearningRecord | None = None
