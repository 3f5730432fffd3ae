"""The options of `flexswitch compress` for methods that learn from examples."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flexswitch.merging.checkpoints.checkpoint import Checkpoint
    from flexswitch.merging.compression.plan import CheckpointFile, Progress, TrainingInputs
    from flexswitch.merging.task_vectors.task_vector import TaskVector

TargetSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Of a method that meets one: bytes (400KB), a share of float32 (0.5%) or bits a parameter "
        "(0.16bpp), for the whole artifact.",
        show_default=False,
    ),
]
Exemplars = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Of a method that learns: folder of <task>.train.* files, named as the task is; labels are "
        "read for objective=task alone.",
        show_default=False,
    ),
]
PerTask = Annotated[
    int | None,
    typer.Option(min=1, help="Exemplars to learn from; 100 without it.", show_default=False),
]
Device = Annotated[
    str | None, typer.Option(help="Where the model runs: cpu or cuda; cpu without it.", show_default=False)
]
CheckpointEvery = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Keep the learning in OUTPUT.training every N steps, and go on where it has some.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class LearningOptions:
    """The options as they were given, None where they were not."""

    exemplars: Path | None = None
    per_task: int | None = None
    adapter: str | None = None
    device: str | None = None
    checkpoint_every: int | None = None

    def given(self) -> list[str]:
        """Returns the names of those that were given, as they are typed."""
        return [f"--{name.replace('_', '-')}" for name, value in vars(self).items() if value is not None]

    def training_inputs(self, base: "Checkpoint", vector: "TaskVector", task: str) -> "TrainingInputs":
        """Returns where the task is learned. Raises: UsageError, InputError before any weight is read."""
        from flexswitch.merging.compression.plan import TrainingInputs
        from flexswitch.merging.models.adapters import get_adapter
        from flexswitch.merging.models.device import check_device
        from flexswitch.merging.models.examples import task_file

        if self.exemplars is None:
            raise ValueError("check_learning refuses a learning without exemplars")
        device = self.device or "cpu"
        check_device(device)
        task_file(self.exemplars, task, "train")
        get_adapter(base, vector.model.adapter, self.adapter)
        return TrainingInputs(base, self.exemplars, self.per_task or 100, self.adapter, device)

    def saving(self, output: Path) -> "CheckpointFile | None":
        """Returns where the state of a learning is kept, None where it is not asked for."""
        from flexswitch.merging.compression.plan import CheckpointFile
        from flexswitch.merging.flex_switch.training_checkpoint import training_checkpoint_file

        return (
            None
            if self.checkpoint_every is None
            else CheckpointFile(training_checkpoint_file(output), self.checkpoint_every)
        )


def read_settings(method: str, texts: list[str], target_size: str | None) -> dict[str, Any]:
    """Returns a method's settings, the target size among them. Raises: UsageError."""
    from flexswitch.codecs.errors import UsageError
    from flexswitch.merging.methods.registry import get_method
    from flexswitch.merging.methods.settings import check_settings, compressions_with, parse_settings

    chosen = get_method(method, "compression")
    settings: dict[str, Any] = dict(parse_settings(texts))
    if target_size is not None:
        if method not in compressions_with("target_size"):
            raise UsageError(
                f"--target-size: {method} meets no size; those that do: "
                f"{', '.join(compressions_with('target_size'))}"
            )
        if "target_size" in settings:
            raise UsageError("give one of --target-size and --set target_size")
        settings["target_size"] = target_size
    return check_settings(chosen, settings).model_dump(by_alias=True)


def check_learning(options: LearningOptions, method: str, settings: dict[str, Any], has_base: bool) -> bool:
    """Returns whether the method learns from examples.

    Raises: UsageError where it does and lacks what that takes, or does not and options would do nothing.
    """
    from flexswitch.codecs.errors import UsageError
    from flexswitch.merging.methods.registry import get_method, method_names

    needs = get_method(method, "compression").needs
    if "exemplars" not in needs or settings["objective"] == "none":
        if given := options.given():
            way = f"{method} with objective=none" if "objective" in settings else method
            raise UsageError(
                f"{', '.join(given)}: {way} does not learn from examples; those that do: "
                f"{', '.join(method_names('compression', 'exemplars'))}"
            )
        return False
    if options.exemplars is None:
        raise UsageError(
            f"{method} learns from examples: give --exemplars DIR, or learn from none with --set "
            "objective=none"
        )
    if not has_base:
        raise UsageError(f"{method} runs the model to learn: give --base BASE, or --set objective=none")
    return True


def hearer(on_step: Callable[[int, str], None], parameters: int) -> "Callable[[Progress], None]":
    """Returns what hears of a learning's steps and says how it stands."""

    def heard(progress: "Progress") -> None:
        bits = progress.bits / max(1, parameters)
        on_step(progress.step, f"loss {progress.loss:.3g}, {bits:.3f} bits a parameter")

    return heard
