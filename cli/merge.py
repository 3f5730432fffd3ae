"""`flexswitch merge`: one task restored, or many merged, as a complete model directory."""

from typing import Annotated, Any

import typer

from flexswitch.cli.console import Console, size
from flexswitch.cli.options import Debug, Json, Output, Overwrite, Quiet, Set


def merge(
    sources: Annotated[
        list[str], typer.Argument(help="A zoo, artifacts, task vectors or fine-tuned checkpoints.")
    ],
    base: Annotated[str, typer.Option(help="The base they were made from.", show_default=False)],
    output: Output,
    task: Annotated[str | None, typer.Option(help="Restore this one task.", show_default=False)] = None,
    method: Annotated[
        str | None, typer.Option(help="Merge all tasks by: average, task-arithmetic.", show_default=False)
    ] = None,
    set_: Set = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; the base's without it.", show_default=False),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="The largest weight file.")] = "5GB",
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Restore one task's model (--task), or merge several into one (--method).

    Example: flexswitch merge zoo --base models/base -o sst2-restored --task sst2
    Example: flexswitch merge zoo --base models/base -o merged --method task-arithmetic --set lambda=0.3
    """
    from flexswitch.cli.arguments import choice
    from flexswitch.codecs.atomic import check_output
    from flexswitch.codecs.errors import InputError, UsageError, unknown_name
    from flexswitch.merging.checkpoint import open_checkpoint
    from flexswitch.merging.fingerprint import check_base
    from flexswitch.merging.model_directory import model_card, parse_size, write_model_directory
    from flexswitch.merging.open_vector import open_task_vectors
    from flexswitch.merging.restore import restored_tensors
    from flexswitch.merging.settings import parse_settings
    from flexswitch.merging.static.merge import merged_tensors
    from flexswitch.merging.static.registry import get_merge
    from flexswitch.merging.task_vector import TaskVector

    console = Console(quiet, json)
    if (task is None) == (method is None):
        raise UsageError("give one of --task NAME and --method NAME")
    settings = parse_settings(method or "--task", get_merge(method) if method else restored_task, set_ or [])
    shard_bytes, torch_dtype = parse_size(max_shard_size), None
    if dtype is not None:
        import torch

        torch_dtype = getattr(torch, choice("--dtype", dtype, ("float32", "bfloat16", "float16")))
    check_output(output, overwrite)
    checkpoint = open_checkpoint(base)
    vectors: dict[str, TaskVector] = {}
    for source in sources:
        for name, vector in open_task_vectors(source, checkpoint).items():
            if name in vectors:
                raise InputError(f"{source}: holds the task '{name}', as {vectors[name].source} does")
            vectors[name] = vector
    if task is not None and task not in vectors:
        raise InputError(unknown_name("task", task, vectors))
    used = [task] if task is not None else list(vectors)
    for name in used:
        check_base(checkpoint, vectors[name].identity(), vectors[name].source)
    if task is not None:
        outputs = restored_tensors(checkpoint, vectors[task], settings["lambda_"], torch_dtype)
        changes, title = dict(vectors[task].model.config), task
    else:
        outputs = merged_tensors(checkpoint, list(vectors.values()), str(method), settings, torch_dtype)
        changes, title = {}, f"{method} of {', '.join(vectors)}"
    if dtype is not None:
        changes |= {"dtype": dtype}
    shown = {key.rstrip("_"): value for key, value in settings.items()}
    lines = {
        "base": checkpoint.hub_id or f"fingerprint {vectors[used[0]].identity().fingerprint}",
        "tasks": ", ".join(used),
        "method": method or "restored",
        "settings": ", ".join(f"{key}={value}" for key, value in shown.items()) or "none",
    }
    way = f"--task {task}" if task is not None else f"--method {method}"
    options = "".join(f" --set {key}={value}" for key, value in shown.items())
    card = model_card(title, lines, f"flexswitch merge TASKS --base BASE -o OUT {way}{options}")
    with console.progress(f"writing {len(outputs)} tensors to {output}", len(outputs)) as step:
        write_model_directory(output, outputs, checkpoint, changes, card, shard_bytes, overwrite, step)
    stored = sum(file.stat().st_size for file in output.iterdir())
    document = {
        "output": str(output),
        "tasks": used,
        "method": method or "restored",
        "settings": shown,
        "bytes": stored,
    }
    return console.result(document, f"{output}: {title}, {len(outputs)} tensors, {size(stored)}")


def restored_task(*, lambda_: float = 1.0) -> None:
    """Stands for the settings of --task: lambda scales the task vector."""
