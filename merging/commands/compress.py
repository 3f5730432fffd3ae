"""Compresses a task vector, or a fine-tuned checkpoint against its base, into an artifact."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flexswitch.codecs.errors import UsageError
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
from flexswitch.merging.commands.training_options import PER_TASK, TrainingOptions
from flexswitch.merging.compression.budget import parse_budget, size_setting
from flexswitch.merging.compression.extras import Extras, check_extras
from flexswitch.merging.methods.registry import get_method
from flexswitch.merging.methods.settings import check_settings, compressions_with, recorded
from flexswitch.merging.task_vectors.task_name import SUFFIX

if TYPE_CHECKING:
    from flexswitch.codecs.format.training_file import CheckpointFile
    from flexswitch.merging.checkpoints.checkpoint import Checkpoint
    from flexswitch.merging.compression.plan import Progress
    from flexswitch.merging.task_vectors.task_vector import TaskVector


class _Chosen(NamedTuple):
    """The method, its settings, the options of a training, whether there is one, and the task's name.

    extras: how the task's own tensors are stored. budget: the share of answers to keep, by which the size is
    found.
    """

    method: str
    settings: dict[str, Any]
    options: TrainingOptions
    trains: bool
    task: str
    extras: Extras
    budget: float | None


def _check(
    output: str | Path, base: str | Path | None, method: str | None, settings: Mapping[str, Any] | None,
    target_size: str | None, exemplars: str | Path | None, per_task: int, adapter: str | None, device: str,
    max_length: int | None, checkpoint_every: int | None, name: str | None, extras: Extras | None,
    budget: str | None,
) -> _Chosen:  # fmt: skip
    """Returns what the options choose. Raises: UsageError."""
    check_suffix(Path(output), ".fsw")
    share = None if budget is None else parse_budget(budget)
    if method is None:
        learns = exemplars is not None or target_size is not None or budget is not None
        method = "flexswitch" if learns else "t-switch"
    given = _sized(method, settings, target_size)
    if share is not None:
        _check_size_is_free(method, given)
    checked = check_settings(get_method(method, "compression"), given)
    chosen = recorded(checked)
    options = TrainingOptions(exemplars, per_task, adapter, device, max_length, checkpoint_every)
    trains = options.check(method, chosen, base is not None, share is not None)
    sized = "target_size" in type(checked).model_fields and "lambda" not in chosen
    own = check_extras(extras, method, sized)
    return _Chosen(method, chosen, options, trains, new_task_name(name, Path(output)), own, share)


@checked_with(_check)
def compress(
    source: Input,
    output: Output,
    *,
    base: Input | None = None,
    method: str | None = None,
    settings: Mapping[str, Any] | None = None,
    target_size: str | None = None,
    budget: str | None = None,
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

    method: None is t-switch, or flexswitch where exemplars, a target size or a budget are given. settings:
    the method's, by name. target_size: "400KB", "0.5%" of float32 or "0.16bpp". budget: "agreement=99%" finds
    the smallest artifact that keeps this share of the answers to held-out exemplars. extras: how the task's
    own tensors, such as a head, are stored: "exact", "float16", "int8" or "auto"; None is auto for methods
    that meet a size, else exact. max_length: the number of tokens at which exemplars are cut; None is the
    model's own. jobs: threads; None is one for each core. memory: bytes that tensors in progress may take.
    Raises: FlexswitchError.
    """
    from flexswitch.merging.compression.compress import compress as compress_vector
    from flexswitch.merging.compression.plan import Training
    from flexswitch.merging.compression.quality_warning import quality_warning

    output = Path(output)
    method, chosen, options, trains, task, own, share = _check(
        output, base, method, settings, target_size, exemplars, per_task, adapter, device, max_length,
        checkpoint_every, name, extras, budget,
    )  # fmt: skip
    check_inputs_stay(output, (source, base, exemplars))
    check_output(output, overwrite)
    vector, checkpoint = _opened(str(source), base, selection(include, exclude, on_resize, key), reporter)
    if checkpoint is None and chosen.get("weight_decay"):
        reporter.note("without --base BASE, what weight decay did is compressed like all else")
    runs = checkpoint is not None and (trains or share is not None)
    inputs = options.inputs(checkpoint, vector, task) if checkpoint and runs else None
    on_note = _each_once(reporter.note)
    file, count, threads = options.checkpoint_file(output), len(vector.tensors), jobs or DEFAULT_JOBS

    def write(path: Path, given: Mapping[str, Any], overwrite: bool = True, resume: bool = False) -> None:
        with (
            reporter.progress(f"compressing {counted(count, 'tensor')} of {source}", count) as on_tensor,
            reporter.steps(f"training {task}", chosen.get("steps", 0)) as on_step,
        ):
            on_progress = _step_reporter(on_step, vector.parameters)
            training = Training(inputs if trains else None, file, on_progress, on_note, checkpoint)
            compress_vector(
                vector, path, task, method, given, overwrite, on_tensor, threads, memory, resume, training,
                own,
            )  # fmt: skip
        if file is not None:
            file.remove()

    with _note_what_is_kept(reporter, output, resume, file):
        if share is None or inputs is None:
            write(output, chosen, overwrite, resume)
        else:
            from flexswitch.merging.commands.compress_budget import Budget, compress_within, search_identity
            from flexswitch.merging.flex_switch.held_out_answers import held_out_answers

            answers = held_out_answers(vector, task, inputs, chosen if trains else None, threads)
            wanted = Budget(share, method, chosen, answers)
            keeps = resume or file is not None
            run = search_identity(wanted, vector, task, inputs, own) if keeps else None
            compress_within(wanted, output, overwrite, write, run, reporter)
    artifact = open_artifact(output)
    if warning := quality_warning(artifact.header):
        reporter.note(warning)
    return artifact


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


def _check_size_is_free(method: str, given: Mapping[str, Any]) -> None:
    """Raises: UsageError where a budget finds the size, and it is given or no setting decides it."""
    name = size_setting(method).name
    for each in (name, "lambda"):
        if each in given:
            raise UsageError(f"--budget finds the size, and {each}={given[each]} sets it; give one of them")


@contextmanager
def _note_what_is_kept(
    reporter: Reporter, output: Path, resume: bool, file: "CheckpointFile | None"
) -> Iterator[None]:
    """Notes on Ctrl-C which files let the same command continue."""
    from flexswitch.merging.commands.compress_budget import tries_path
    from flexswitch.merging.compression.resume import side_file

    try:
        yield
    except KeyboardInterrupt:
        if resume and side_file(output).exists():
            reporter.note(f"finished tensors are kept in {side_file(output)}; the same command continues")
        if tries_path(output).exists():
            reporter.note(f"finished tries are kept in {tries_path(output)}; the same command continues")
        if file is not None and file.path.exists():
            reporter.note(f"the training is kept in {file.path}; the same command continues it")
        raise


def _each_once(note: Callable[[str], None]) -> Callable[[str], None]:
    """Returns a function that notes the same text once, whatever the number of compressions."""
    return functools.cache(note)


def _step_reporter(on_step: Callable[[int, str], None], parameters: int) -> "Callable[[Progress], None]":
    """Returns a function that reports a training step, its loss and size."""

    def report(progress: "Progress") -> None:
        bits = progress.bits / max(1, parameters)
        on_step(progress.step, f"loss {progress.loss:.3g}, {bits:.3f} bits per parameter")

    return report
