"""`flexswitch compress`: a task vector, or two checkpoints, into a tiny artifact."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexswitch.cli.console import Console, size
from flexswitch.cli.learning_options import (
    CheckpointEvery,
    Device,
    Exemplars,
    LearningOptions,
    PerTask,
    TargetSize,
    check_learning,
    hearer,
    read_settings,
)
from flexswitch.cli.options import (
    Adapter,
    Debug,
    Exclude,
    Include,
    Jobs,
    Json,
    Memory,
    Name,
    OnResize,
    Output,
    Overwrite,
    Quiet,
    Set,
)

if TYPE_CHECKING:
    from flexswitch.merging.checkpoints.checkpoint import Checkpoint
    from flexswitch.merging.checkpoints.pairing import Selection
    from flexswitch.merging.compression.plan import CheckpointFile
    from flexswitch.merging.task_vectors.task_vector import TaskVector


def compress(
    task_vector: Annotated[
        str, typer.Argument(help="A TASK.tv.safetensors; or with --base a fine-tuned checkpoint or LoRA.")
    ],
    output: Output,
    method: Annotated[
        str,
        typer.Option(
            help="How to compress: t-switch, p-discard, bin-discard, dare, tvq, bitdelta, compeft, "
            "flexswitch.",
            show_default=False,
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            help="The base of a fine-tuned checkpoint; a method that learns runs it.", show_default=False
        ),
    ] = None,
    set_: Set = None,
    target_size: TargetSize = None,
    exemplars: Exemplars = None,
    per_task: PerTask = None,
    adapter: Adapter = None,
    device: Device = None,
    checkpoint_every: CheckpointEvery = None,
    include: Include = None,
    exclude: Exclude = None,
    on_resize: OnResize = "refuse",
    name: Name = None,
    jobs: Jobs = None,
    memory: Memory = "1GB",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Keep finished tensors in OUTPUT.resume, and go on where it has some."),
    ] = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Compress a task vector, or a fine-tuned checkpoint against its base, into an artifact.

    flexswitch learns what to keep: it takes --base and --exemplars, and meets a --target-size.

    Example: flexswitch compress sst2 --base base -o sst2.fsw --method t-switch
    """
    from flexswitch.cli.arguments import new_task_name, selection
    from flexswitch.codecs.errors import UsageError
    from flexswitch.codecs.format.atomic import check_output
    from flexswitch.codecs.threads import DEFAULT_JOBS
    from flexswitch.merging.compression.compress import compress as compress_vector
    from flexswitch.merging.compression.plan import Training
    from flexswitch.merging.task_vectors.model_directory import parse_size

    console = Console(quiet, json)
    if output.suffix != ".fsw":
        raise UsageError(f"-o {output}: expected a file name that ends in .fsw")
    settings = read_settings(method, set_ or [], target_size)
    learning = LearningOptions(exemplars, per_task, adapter, device, checkpoint_every)
    has_lesson = check_learning(learning, method, settings, base is not None)
    check_output(output, overwrite)
    budget, task = parse_size(memory), new_task_name(name, output)
    vector, checkpoint = _opened(task_vector, base, selection(include, exclude, on_resize), console)
    inputs = learning.training_inputs(checkpoint, vector, task) if has_lesson and checkpoint else None
    saving = learning.saving(output)
    with (
        console.progress(
            f"compressing {len(vector.tensors)} tensors of {task_vector}", len(vector.tensors)
        ) as on_tensor,
        console.steps(f"learning {task}", settings.get("steps", 0)) as on_step,
        _told_what_is_kept(console, output, resume, saving),
    ):
        training = Training(inputs, saving, hearer(on_step, vector.parameters), console.note)
        compress_vector(
            vector, output, task, method, settings, overwrite, on_tensor, jobs or DEFAULT_JOBS, budget,
            resume, training,
        )  # fmt: skip
    if saving is not None:
        saving.remove()
    return _said(console, output, settings)


def _opened(
    source: str, base: str | None, chosen: "Selection", console: Console
) -> "tuple[TaskVector, Checkpoint | None]":
    """Returns the task vector and, where it is given, its base. Raises: UsageError, InputError."""
    from flexswitch.codecs.errors import UsageError
    from flexswitch.merging.checkpoints.fingerprint import check_base
    from flexswitch.merging.checkpoints.hashing import HashingCheckpoint
    from flexswitch.merging.checkpoints.opening import open_checkpoint
    from flexswitch.merging.checkpoints.pairing import EVERYTHING
    from flexswitch.merging.task_vectors.open_vector import open_finetuned
    from flexswitch.merging.task_vectors.task_vector_file import SUFFIX, TaskVectorFile

    if source.endswith(SUFFIX):
        if chosen != EVERYTHING:
            raise UsageError(
                "--include, --exclude and --on-resize need a checkpoint and --base; give them to `extract` "
                "instead"
            )
        vector = TaskVectorFile(Path(source))
        checkpoint = None if base is None else open_checkpoint(base)
        if checkpoint is not None:
            check_base(checkpoint, vector.identity(), source)
        return vector, checkpoint
    if base is None:
        raise UsageError(f"{source}: expected a task vector (*{SUFFIX}); a checkpoint needs --base BASE")
    checkpoint = HashingCheckpoint(open_checkpoint(base))
    pair = open_finetuned(source, checkpoint, chosen)
    for note in pair.notes:
        console.note(note)
    return pair, checkpoint


@contextmanager
def _told_what_is_kept(
    console: Console, output: Path, resume: bool, saving: "CheckpointFile | None"
) -> Iterator[None]:
    """Says on Ctrl-C what the same command goes on from."""
    from flexswitch.merging.compression.resume import side_file

    try:
        yield
    except KeyboardInterrupt:
        if resume and side_file(output).exists():
            console.note(f"finished tensors are kept in {side_file(output)}; the same command goes on")
        if saving is not None and saving.path.exists():
            console.note(f"the learning is kept in {saving.path}; the same command goes on from there")
        raise


def _said(console: Console, output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Prints what the artifact is and how small; returns the JSON document."""
    from flexswitch.cli.training_report import training_line
    from flexswitch.codecs.format.container import open_artifact

    header, stored = open_artifact(output).header, output.stat().st_size
    parameters = max(1, header.parameters)
    kept = sum(record.kept for record in header.tensors.values())
    document = {
        "output": str(output),
        "task": header.name,
        "method": header.method.name,
        "settings": settings,
        "parameters": header.parameters,
        "kept": kept,
        "bytes": stored,
        "bits_per_parameter": 8 * stored / parameters,
    }
    lines = [
        f"{output}: task '{header.name}' by {header.method.name}, kept {kept / parameters:.1%} of "
        f"{header.parameters:,} parameters, {size(stored)}, {document['bits_per_parameter']:.3f} bits a "
        f"parameter (1/{4 * header.parameters / stored:.0f} of float32)"
    ]
    if header.training is not None:
        document["training"] = header.training.model_dump(exclude={"curve"})
        lines.append(training_line(header, header.training))
    return console.result(document, *lines)
