"""Compresses a task vector, or a fine-tuned checkpoint against its base, into an artifact."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flexswitch.codecs.errors import UnusedOptionError, UsageError
from flexswitch.codecs.format.atomic import check_output
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.threads import DEFAULT_JOBS, DEFAULT_MEMORY
from flexswitch.merging.checkpoints.pairing import EVERYTHING, Resize, Selection
from flexswitch.merging.commands.arguments import (
    Bytes,
    Input,
    Output,
    Positive,
    check_inputs_stay,
    check_suffix,
    checked_with,
    new_task_name,
    selection,
)
from flexswitch.merging.commands.reporter import SILENT, Reporter, counted
from flexswitch.merging.compression.extras import Extras, check_extras
from flexswitch.merging.methods.registry import get_method, method_names
from flexswitch.merging.methods.settings import check_settings, compressions_with, recorded
from flexswitch.merging.task_vectors.task_name import SUFFIX

if TYPE_CHECKING:
    from flexswitch.codecs.format.training_file import CheckpointFile
    from flexswitch.merging.checkpoints.checkpoint import Checkpoint
    from flexswitch.merging.compression.plan import Progress, TrainingInputs
    from flexswitch.merging.task_vectors.task_vector import TaskVector

PER_TASK = 100


class _Chosen(NamedTuple):
    """The method, its settings, the options of a training, whether there is one, and the task's name.

    extras: how the task's own tensors are stored.
    """

    method: str
    settings: dict[str, Any]
    options: "_TrainingOptions"
    trains: bool
    task: str
    extras: Extras


def _check(
    output: str | Path, base: str | Path | None, method: str | None, settings: Mapping[str, Any] | None,
    target_size: str | None, exemplars: str | Path | None, per_task: int, adapter: str | None, device: str,
    max_length: int | None, checkpoint_every: int | None, name: str | None, extras: Extras | None,
) -> _Chosen:  # fmt: skip
    """Returns what the options choose. Raises: UsageError."""
    check_suffix(Path(output), ".fsw")
    if method is None:
        method = "t-switch" if exemplars is None and target_size is None else "flexswitch"
    given = _sized(method, settings, target_size)
    checked = check_settings(get_method(method, "compression"), given)
    chosen = recorded(checked)
    options = _TrainingOptions(exemplars, per_task, adapter, device, max_length, checkpoint_every)
    trains = options.check(method, chosen, base is not None)
    sized = "target_size" in type(checked).model_fields and "lambda" not in chosen
    own = check_extras(extras, method, sized)
    return _Chosen(method, chosen, options, trains, new_task_name(name, Path(output)), own)


@checked_with(_check)
def compress(
    source: Input,
    output: Output,
    *,
    base: Input | None = None,
    method: str | None = None,
    settings: Mapping[str, Any] | None = None,
    target_size: str | None = None,
    extras: Extras | None = None,
    exemplars: Input | None = None,
    per_task: Positive = PER_TASK,
    adapter: str | None = None,
    device: str = "cpu",
    max_length: Positive | None = None,
    checkpoint_every: Positive | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    on_resize: Resize = "refuse",
    key: str | None = None,
    name: str | None = None,
    jobs: Positive | None = None,
    memory: Bytes = DEFAULT_MEMORY,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> Artifact:
    """Writes the artifact of a task vector file, or of a fine-tuned checkpoint, and returns it opened.

    method: None is t-switch, or flexswitch where exemplars or a target size are given. settings: the
    method's, by name. target_size: "400KB", "0.5%" of float32 or "0.16bpp". extras: how the task's own
    tensors, such as a head, are stored: "exact", "float16", "int8" or "auto"; None is auto for methods that
    meet a size, else exact. max_length: the number of tokens at which exemplars are cut; None is the model's
    own. jobs: threads; None is one for each core. memory: bytes that tensors in progress may take.
    Raises: FlexswitchError.
    """
    from flexswitch.merging.compression.compress import compress as compress_vector
    from flexswitch.merging.compression.plan import Training
    from flexswitch.merging.compression.quality_warning import quality_warning

    output = Path(output)
    method, chosen, options, trains, task, own = _check(
        output, base, method, settings, target_size, exemplars, per_task, adapter, device, max_length,
        checkpoint_every, name, extras,
    )  # fmt: skip
    check_inputs_stay(output, (source, base, exemplars))
    check_output(output, overwrite)
    vector, checkpoint = _opened(str(source), base, selection(include, exclude, on_resize, key), reporter)
    inputs = options.inputs(checkpoint, vector, task) if trains and checkpoint else None
    file = options.checkpoint_file(output)
    count = len(vector.tensors)
    with (
        reporter.progress(f"compressing {counted(count, 'tensor')} of {source}", count) as on_tensor,
        reporter.steps(f"training {task}", chosen.get("steps", 0)) as on_step,
        _note_what_is_kept(reporter, output, resume, file),
    ):
        training = Training(inputs, file, _step_reporter(on_step, vector.parameters), reporter.note)
        compress_vector(
            vector, output, task, method, chosen, overwrite, on_tensor, jobs or DEFAULT_JOBS, memory, resume,
            training, own,
        )  # fmt: skip
    if file is not None:
        file.remove()
    artifact = open_artifact(output)
    if warning := quality_warning(artifact.header):
        reporter.note(warning)
    return artifact


@dataclass(frozen=True)
class _TrainingOptions:
    """The options of methods that are trained on exemplars."""

    exemplars: str | Path | None
    per_task: int
    adapter: str | None
    device: str
    max_length: int | None
    checkpoint_every: int | None

    def check(self, method: str, settings: Mapping[str, Any], has_base: bool) -> bool:
        """Returns whether the method is trained on exemplars.

        Raises: UsageError where it is and lacks what that takes, or is not and an option would do nothing.
        """
        if "exemplars" not in get_method(method, "compression").needs or settings["objective"] == "none":
            if given := self._given():
                way = f"{method} with objective=none" if "objective" in settings else method
                raise UnusedOptionError(
                    given,
                    f"{way} does not learn from examples; those that do: "
                    f"{', '.join(method_names('compression', 'exemplars'))}",
                )
            return False
        if self.exemplars is None:
            raise UsageError(
                f"{method} learns from examples: give --exemplars DIR, or learn from none with --set "
                "objective=none"
            )
        if not has_base:
            raise UsageError(f"{method} runs the model to learn: give --base BASE, or --set objective=none")
        return True

    def inputs(self, base: "Checkpoint", vector: "TaskVector", task: str) -> "TrainingInputs":
        """Returns what the training reads. Raises: UsageError, InputError before any weight is read."""
        from flexswitch.merging.compression.plan import TrainingInputs
        from flexswitch.merging.models.adapters import get_adapter
        from flexswitch.merging.models.device import check_device
        from flexswitch.merging.models.examples import task_file

        if self.exemplars is None:
            raise ValueError("`check` refuses a training without exemplars")
        check_device(self.device)
        task_file(Path(self.exemplars), task, "train")
        get_adapter(base, vector.model.adapter, self.adapter, self.max_length)
        folder = Path(self.exemplars)
        return TrainingInputs(base, folder, self.per_task, self.adapter, self.device, self.max_length)

    def checkpoint_file(self, output: Path) -> "CheckpointFile | None":
        """Returns where the training's state is kept; None where that is not asked for."""
        if self.checkpoint_every is None:
            return None
        from flexswitch.codecs.format.training_file import CheckpointFile, training_file

        return CheckpointFile(training_file(output), self.checkpoint_every)

    def _given(self) -> list[str]:
        """Returns the names of the options that differ from their defaults."""
        defaults = _TrainingOptions(None, PER_TASK, None, "cpu", None, None)
        return [
            name.replace("_", "-") for name, value in vars(self).items() if value != getattr(defaults, name)
        ]


def _sized(method: str, settings: Mapping[str, Any] | None, target_size: str | None) -> dict[str, Any]:
    """Returns the settings with the target size among them. Raises: UsageError."""
    given = dict(settings or {})
    if target_size is None:
        return given
    able = compressions_with("target_size")
    if method not in able:
        raise UsageError(f"--target-size: {method} meets no size; those that do: {', '.join(able)}")
    if "target_size" in given:
        raise UsageError("give one of --target-size and --set target_size")
    return given | {"target_size": target_size}


def _opened(
    source: str, base: str | Path | None, chosen: Selection, reporter: Reporter
) -> "tuple[TaskVector, Checkpoint | None]":
    """Returns the task vector and, where it is given, its base. Raises: UsageError, InputError."""
    from flexswitch.merging.checkpoints.fingerprint import check_base
    from flexswitch.merging.checkpoints.hashing import open_base
    from flexswitch.merging.task_vectors.open_vector import open_finetuned
    from flexswitch.merging.task_vectors.task_vector_file import TaskVectorFile

    checkpoint = None if base is None else open_base(base)
    if source.endswith(SUFFIX):
        if chosen != EVERYTHING:
            raise UsageError(
                "--include, --exclude, --on-resize and --key need a checkpoint and --base; give them to "
                "`extract` instead"
            )
        vector = TaskVectorFile(Path(source))
        if checkpoint is not None:
            check_base(checkpoint, vector.identity(), source)
        return vector, checkpoint
    if checkpoint is None:
        raise UsageError(f"{source}: expected a task vector (*{SUFFIX}); a checkpoint needs --base BASE")
    pair = open_finetuned(source, checkpoint, chosen)
    for note in pair.notes:
        reporter.note(note)
    return pair, checkpoint


@contextmanager
def _note_what_is_kept(
    reporter: Reporter, output: Path, resume: bool, file: "CheckpointFile | None"
) -> Iterator[None]:
    """Notes on Ctrl-C which files let the same command continue."""
    from flexswitch.merging.compression.resume import side_file

    try:
        yield
    except KeyboardInterrupt:
        if resume and side_file(output).exists():
            reporter.note(f"finished tensors are kept in {side_file(output)}; the same command continues")
        if file is not None and file.path.exists():
            reporter.note(f"the training is kept in {file.path}; the same command continues it")
        raise


def _step_reporter(on_step: Callable[[int, str], None], parameters: int) -> "Callable[[Progress], None]":
    """Returns a function that reports a training step, its loss and size."""

    def report(progress: "Progress") -> None:
        bits = progress.bits / max(1, parameters)
        on_step(progress.step, f"loss {progress.loss:.3g}, {bits:.3f} bits per parameter")

    return report
