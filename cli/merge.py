"""`flexswitch merge`: one task restored, or many merged, as a complete model directory."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexswitch.cli.console import Console, size
from flexswitch.cli.options import Debug, Json, Output, Overwrite, Quiet, Set

if TYPE_CHECKING:
    import torch

    from flexswitch.merging.checkpoints.checkpoint import Checkpoint
    from flexswitch.merging.task_vectors.task_vector import TaskVector


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

    Example: flexswitch merge zoo --base base -o sst2-restored --task sst2

    Example: flexswitch merge zoo --base base -o merged --method average
    """
    from flexswitch.codecs.errors import UsageError
    from flexswitch.codecs.format.atomic import check_output
    from flexswitch.merging.checkpoints.opening import open_checkpoint
    from flexswitch.merging.methods.registry import Method, get_method
    from flexswitch.merging.methods.settings import check_settings, parse_settings, recorded
    from flexswitch.merging.static.merge import merged_tensors
    from flexswitch.merging.task_vectors.model_directory import parse_size, write_model_directory
    from flexswitch.merging.task_vectors.restore import restored_tensors

    console = Console(quiet, json)
    if (task is None) == (method is None):
        raise UsageError("give one of --task NAME and --method NAME")
    way = method or "restored"
    restored = Method("restored", "merge", f"{__name__}:_restored", ("the task vector",), "")
    chosen = get_method(method, "merge") if method else restored
    settings = recorded(check_settings(chosen, parse_settings(set_ or [])))
    shard_bytes, torch_dtype = parse_size(max_shard_size), _torch_dtype(dtype)
    check_output(output, overwrite)
    checkpoint = open_checkpoint(base)
    vectors = _open_vectors(sources, checkpoint, task)
    if task is not None:
        outputs = restored_tensors(checkpoint, vectors[task], settings["lambda"], torch_dtype)
    else:
        outputs = merged_tensors(checkpoint, list(vectors.values()), way, settings, torch_dtype)
    changes = (dict(vectors[task].model.config) if task else {}) | ({"dtype": dtype} if dtype else {})
    card = _card(checkpoint, list(vectors), way, [f"{key}={value}" for key, value in settings.items()])
    with console.progress(f"writing {len(outputs)} tensors to {output}", len(outputs)) as step:
        write_model_directory(output, outputs, checkpoint, changes, card, shard_bytes, overwrite, step)
    stored = sum(file.stat().st_size for file in output.iterdir())
    document = {"output": str(output), "tasks": list(vectors), "method": way, "bytes": stored}
    return console.result(
        document, f"{output}: {', '.join(vectors)} {way}, {len(outputs)} tensors, {size(stored)}"
    )


def _restored(*, lambda_: float = 1.0) -> None:
    """Stands for --task where settings are read: lambda scales the task vector."""


def _torch_dtype(dtype: str | None) -> "torch.dtype | None":
    from flexswitch.cli.arguments import choice

    if dtype is None:
        return None
    import torch

    found: torch.dtype = getattr(torch, choice("--dtype", dtype, ("float32", "bfloat16", "float16")))
    return found


def _open_vectors(sources: list[str], base: "Checkpoint", task: str | None) -> "dict[str, TaskVector]":
    """Returns the task vectors in the order given, or the one asked for, all checked against the base."""
    from flexswitch.codecs.errors import InputError, unknown_name
    from flexswitch.merging.checkpoints.fingerprint import check_base
    from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
    from flexswitch.merging.task_vectors.lora import LoraVector
    from flexswitch.merging.task_vectors.open_vector import open_task_vectors

    vectors: dict[str, TaskVector] = {}
    for source in sources:
        for name, vector in open_task_vectors(source, base).items():
            if name in vectors:
                raise InputError(f"{source}: holds the task '{name}', as {vectors[name].source} does")
            vectors[name] = vector
    if task is not None:
        if task not in vectors:
            raise InputError(f"{', '.join(sources)}: {unknown_name('task', task, vectors)}")
        vectors = {task: vectors[task]}
    for vector in vectors.values():
        if not isinstance(vector, (CheckpointPair, LoraVector)):  # those are made from this very base
            check_base(base, vector.identity(), vector.source)
    return vectors


def _card(base: "Checkpoint", tasks: list[str], way: str, settings: list[str]) -> str:
    from flexswitch.merging.checkpoints.fingerprint import quick_fingerprint
    from flexswitch.merging.task_vectors.model_directory import model_card

    lines = {
        "base": f"{base.hub_id or 'local'}, quick fingerprint {quick_fingerprint(base)}",
        "tasks": ", ".join(tasks),
        "method": way,
        "settings": ", ".join(settings) or "none",
    }
    choice = f"--task {tasks[0]}" if way == "restored" else f"--method {way}"
    options = "".join(f" --set {setting}" for setting in settings)
    return model_card(", ".join(tasks), lines, f"flexswitch merge TASKS --base BASE -o OUT {choice}{options}")
