"""`flexswitch compress`: a task vector, or two checkpoints, into a tiny artifact."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flexswitch.cli.console import Console, size
from flexswitch.cli.options import (
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


def compress(
    task_vector: Annotated[
        str, typer.Argument(help="A TASK.tv.safetensors; or with --base a fine-tuned checkpoint or LoRA.")
    ],
    output: Output,
    method: Annotated[
        str,
        typer.Option(
            help="How to compress: t-switch, p-discard, bin-discard, dare, tvq, bitdelta, compeft.",
            show_default=False,
        ),
    ],
    base: Annotated[
        str | None, typer.Option(help="The base of a fine-tuned checkpoint.", show_default=False)
    ] = None,
    set_: Set = None,
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

    Example: flexswitch compress sst2 --base base -o sst2.fsw --method t-switch
    """
    from flexswitch.cli.arguments import new_task_name, selection
    from flexswitch.codecs.atomic import check_output
    from flexswitch.codecs.container import open_artifact
    from flexswitch.codecs.errors import UsageError
    from flexswitch.merging.checkpoint import open_checkpoint
    from flexswitch.merging.compression.compress import compress as compress_vector
    from flexswitch.merging.compression.registry import get_method
    from flexswitch.merging.compression.resume import side_file
    from flexswitch.merging.model_directory import parse_size
    from flexswitch.merging.open_vector import open_finetuned
    from flexswitch.merging.parallel import DEFAULT_JOBS
    from flexswitch.merging.settings import parse_settings
    from flexswitch.merging.task_vector import TaskVector
    from flexswitch.merging.task_vector_file import SUFFIX, TaskVectorFile

    console = Console(quiet, json)
    if output.suffix != ".fsw":
        raise UsageError(f"-o {output}: expected a file name that ends in .fsw")
    settings = parse_settings(method, get_method(method), set_ or [])
    check_output(output, overwrite)
    budget = parse_size(memory)
    chosen = selection(include, exclude, on_resize)
    vector: TaskVector
    if base is not None:
        vector = open_finetuned(task_vector, open_checkpoint(base), chosen)
        for note in vector.notes:
            console.note(note)
    elif not task_vector.endswith(SUFFIX):
        raise UsageError(f"{task_vector}: expected a task vector (*{SUFFIX}); a checkpoint needs --base BASE")
    elif include or exclude or on_resize != "refuse":
        raise UsageError("--include, --exclude and --on-resize need --base; give them to `extract` instead")
    else:
        vector = TaskVectorFile(Path(task_vector))
    task = new_task_name(name, output)
    with console.progress(
        f"compressing {len(vector.units)} tensors of {task_vector}", len(vector.units)
    ) as step:
        try:
            compress_vector(
                vector, output, task, method, settings, overwrite, step,
                jobs or DEFAULT_JOBS, budget, resume,
            )  # fmt: skip
        except KeyboardInterrupt:
            if resume:
                console.note(f"finished tensors are kept in {side_file(output)}; the same command goes on")
            raise
    header, stored = open_artifact(output).header, output.stat().st_size
    kept = sum(record.kept for record in header.tensors.values())
    document = {
        "output": str(output),
        "task": task,
        "method": method,
        "settings": settings,
        "parameters": header.parameters,
        "kept": kept,
        "bytes": stored,
        "bits_per_parameter": 8 * stored / max(1, header.parameters),
    }
    return console.result(
        document,
        f"{output}: task '{task}' by {method}, kept {kept / max(1, header.parameters):.1%} of "
        f"{header.parameters:,} parameters, {size(stored)}, {document['bits_per_parameter']:.3f} bits a "
        f"parameter (1/{4 * header.parameters / stored:.0f} of float32)",
    )
