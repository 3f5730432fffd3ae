"""Restores one task's model, or merges several tasks into one, as a complete model directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field

from flexswitch.codecs.errors import InputError, UsageError, check_choice, unknown_name
from flexswitch.codecs.format.atomic import check_output
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.fingerprint import check_base, quick_fingerprint
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.commands.arguments import Bytes, Input, Output, OutputDtype, checked
from flexswitch.merging.commands.reporter import SILENT, Reporter
from flexswitch.merging.methods.registry import Method, get_method
from flexswitch.merging.methods.settings import check_settings, recorded
from flexswitch.merging.static.merge import merged_tensors
from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.lora import LoraVector
from flexswitch.merging.task_vectors.model_directory import model_card, write_model_directory
from flexswitch.merging.task_vectors.open_vector import open_task_vectors
from flexswitch.merging.task_vectors.restore import restored_tensors
from flexswitch.merging.task_vectors.task_vector import TaskVector

_SHARD_BYTES = 5_000_000_000


class Merged(NamedTuple):
    """The model directory, the tasks in it, how they were merged, and its number of tensors."""

    path: Path
    tasks: list[str]
    method: str
    tensors: int


def restored(*, lambda_: Annotated[float, Field(description="Scale of the task vector.")] = 1.0) -> None:
    """Carries the settings of restoring one task."""


_RESTORED = Method("restored", "merge", f"{__name__}:restored", ("the task vector",), "")


@checked
def merge(
    sources: Sequence[Input],
    output: Output,
    *,
    base: Input,
    task: str | None = None,
    method: str | None = None,
    settings: Mapping[str, Any] | None = None,
    dtype: OutputDtype | None = None,
    max_shard_size: Bytes = _SHARD_BYTES,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> Merged:
    """Writes one task's model, or all tasks merged by a method.

    sources: zoos, artifacts, task vector files and fine-tuned checkpoints. dtype: None is the base's.
    max_shard_size: bytes of the largest weight file. Raises: FlexswitchError.
    """
    output = Path(output)
    if (task is None) == (method is None):
        raise UsageError("give one of --task NAME and --method NAME")
    if dtype is not None:
        check_choice("--dtype", dtype, OutputDtype)
    chosen = get_method(method, "merge") if method else _RESTORED
    given = recorded(check_settings(chosen, settings or {}))
    check_output(output, overwrite)
    checkpoint = open_checkpoint(str(base))
    vectors = _open_vectors([str(source) for source in sources], checkpoint, task)
    as_dtype: torch.dtype | None = None if dtype is None else getattr(torch, dtype)
    if task is not None:
        outputs = restored_tensors(checkpoint, vectors[task], given["lambda"], as_dtype)
    else:
        outputs = merged_tensors(checkpoint, list(vectors.values()), chosen.name, given, as_dtype)
    changes = (dict(vectors[task].model.config) if task else {}) | ({"dtype": dtype} if dtype else {})
    card = _card(checkpoint, list(vectors), chosen.name, [f"{key}={value}" for key, value in given.items()])
    with reporter.progress(f"writing {len(outputs)} tensors to {output}", len(outputs)) as on_tensor:
        write_model_directory(
            output, outputs, checkpoint, changes, card, max_shard_size, overwrite, on_tensor
        )
    return Merged(output, list(vectors), chosen.name, len(outputs))


def _open_vectors(sources: list[str], base: Checkpoint, task: str | None) -> dict[str, TaskVector]:
    """Returns the task vectors in the order given, or the one asked for, all checked against the base."""
    vectors: dict[str, TaskVector] = {}
    for source in sources:
        for name, vector in open_task_vectors(source, base).items():
            if name in vectors:
                raise InputError(f"{source}: holds the task '{name}', as {vectors[name].source} does")
            vectors[name] = vector
    if not vectors:
        raise InputError(
            f"{', '.join(sources)}: holds no task, expected at least one; pack an artifact first"
        )
    if task is not None:
        if task not in vectors:
            raise InputError(f"{', '.join(sources)}: {unknown_name('task', task, vectors)}")
        vectors = {task: vectors[task]}
    for vector in vectors.values():
        if not isinstance(vector, (CheckpointPair, LoraVector)):  # these are made from this very base
            check_base(base, vector.identity(), vector.source)
    return vectors


def _card(base: Checkpoint, tasks: list[str], way: str, settings: list[str]) -> str:
    lines = {
        "base": f"{base.hub_id or 'local'}, quick fingerprint {quick_fingerprint(base)}",
        "tasks": ", ".join(tasks),
        "method": way,
        "settings": ", ".join(settings) or "none",
    }
    choice = f"--task {tasks[0]}" if way == "restored" else f"--method {way}"
    options = "".join(f" --set {setting}" for setting in settings)
    return model_card(", ".join(tasks), lines, f"flexswitch merge TASKS --base BASE -o OUT {choice}{options}")
