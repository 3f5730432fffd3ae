"""The options of compressions that run the model on exemplars: to learn from them, or to measure a budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexswitch.codecs.errors import UnusedOptionError, UsageError
from flexswitch.merging.methods.registry import get_method, method_names

if TYPE_CHECKING:
    from flexswitch.codecs.format.training_file import CheckpointFile
    from flexswitch.merging.checkpoints.checkpoint import Checkpoint
    from flexswitch.merging.compression.plan import TrainingInputs
    from flexswitch.merging.task_vectors.task_vector import TaskVector

PER_TASK = 100


@dataclass(frozen=True)
class TrainingOptions:
    """The options of methods that are trained on exemplars."""

    exemplars: str | Path | None
    per_task: int
    adapter: str | None
    device: str
    max_length: int | None
    checkpoint_every: int | None

    def check(self, method: str, settings: Mapping[str, Any], has_base: bool, measures: bool) -> bool:
        """Returns whether the method is trained on exemplars. measures: whether a budget is measured on them.

        Raises: UsageError where something is lacking for either, or an option would do nothing.
        """
        trains = "exemplars" in get_method(method, "compression").needs and settings["objective"] != "none"
        if not trains and (given := self._given(measures)):
            way = f"{method} with objective=none" if "objective" in settings else method
            raise UnusedOptionError(
                given,
                f"{way} does not learn from examples; those that do: "
                f"{', '.join(method_names('compression', 'exemplars'))}",
            )
        if measures and (self.exemplars is None or not has_base):
            raise UsageError(
                "--budget is measured on examples that no training used: give --exemplars DIR and --base BASE"
            )
        if trains and self.exemplars is None:
            raise UsageError(
                f"{method} learns from examples: give --exemplars DIR, or learn from none with --set "
                "objective=none"
            )
        if trains and not has_base:
            raise UsageError(f"{method} runs the model to learn: give --base BASE, or --set objective=none")
        return trains

    def inputs(self, base: "Checkpoint", vector: "TaskVector", task: str) -> "TrainingInputs":
        """Returns what runs the model. Raises: UsageError, InputError before any weight is read."""
        from flexswitch.merging.compression.plan import TrainingInputs
        from flexswitch.merging.models.adapters import get_adapter
        from flexswitch.merging.models.device import check_device
        from flexswitch.merging.models.examples import task_file

        if self.exemplars is None:
            raise ValueError("`check` refuses to go on without exemplars")
        check_device(self.device)
        task_file(Path(self.exemplars), task, "train", "; --name gives the task another name")
        get_adapter(base, vector.model.adapter, self.adapter, self.max_length)
        folder = Path(self.exemplars)
        return TrainingInputs(base, folder, self.per_task, self.adapter, self.device, self.max_length)

    def checkpoint_file(self, output: Path) -> "CheckpointFile | None":
        """Returns where the training's state is kept; None where that is not asked for."""
        if self.checkpoint_every is None:
            return None
        from flexswitch.codecs.format.training_file import CheckpointFile, training_file

        return CheckpointFile(training_file(output), self.checkpoint_every)

    def _given(self, measures: bool) -> list[str]:
        """Returns the names of the options that differ from their defaults; those of a training alone if the
        others are for measuring.
        """
        defaults = TrainingOptions(None, PER_TASK, None, "cpu", None, None)
        names = ["checkpoint_every"] if measures else list(vars(self))
        return [name.replace("_", "-") for name in names if getattr(self, name) != getattr(defaults, name)]
