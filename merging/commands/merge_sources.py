"""The task vectors that `merge` takes, from any mixture of sources, and which tensors it leaves out."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.codecs.format.records import TASK_NAME
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.dtypes import is_floating
from flexswitch.merging.checkpoints.fingerprint import check_base
from flexswitch.merging.checkpoints.pairing import EVERYTHING, Selection
from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.lora import LoraVector
from flexswitch.merging.task_vectors.open_vector import open_task_vectors
from flexswitch.merging.task_vectors.task_vector import TaskVector

_SHOWN = 4


def open_sources(sources: Sequence[str], base: Checkpoint, selection: Selection) -> dict[str, TaskVector]:
    """Returns the task vectors of `PATH` and `TASK=PATH` sources by task, in the order given.

    Raises: InputError, UsageError.
    """
    vectors: dict[str, TaskVector] = {}
    for source in sources:
        for task, vector in _open(source, base, selection).items():
            if task in vectors:
                raise InputError(
                    f"{source}: holds the task '{task}', as {vectors[task].source} does; "
                    f"give it another name: NAME={source}"
                )
            vectors[task] = vector
    if not vectors:
        raise InputError(
            f"{', '.join(sources)}: holds no task, expected at least one; pack an artifact first"
        )
    return vectors


def check_stored(vectors: Mapping[str, TaskVector], base: Checkpoint, selection: Selection) -> None:
    """Checks stored task vectors against the base, and that none has to select its tensors anew.

    Raises: InputError, UsageError.
    """
    for vector in vectors.values():
        if isinstance(vector, (CheckpointPair, LoraVector)):  # these are made from this very base
            continue
        if selection != EVERYTHING:
            raise UsageError(
                f"{vector.source}: its tensors were selected when it was made; --include, --exclude and "
                "--on-resize need a checkpoint: give them to `extract` or `compress`"
            )
        check_base(base, vector.identity(), vector.source)


def refuse_resized(vectors: Mapping[str, TaskVector], base: Checkpoint, selection: Selection) -> None:
    """Raises: InputError if a task has a selected tensor of the base in another shape."""
    for vector in vectors.values():
        for name, info in _in_extras(vector, base):
            if selection.takes(name) and info.shape != base.tensors[name].shape:
                ways = "make the task vector again with --on-resize rows"
                if isinstance(vector, (CheckpointPair, LoraVector)):
                    ways = "take the overlapping rows with --on-resize rows"
                raise InputError(
                    f"{vector.source}: tensor '{name}' has the shape {list(info.shape)}, expected the base's "
                    f"{list(base.tensors[name].shape)}; {ways}, or keep the base's with --exclude '{name}'"
                )


def left_out(vectors: Mapping[str, TaskVector]) -> list[str]:
    """Returns a line on each set of tensors that only single tasks have, and that a merge leaves out."""
    tasks_of: dict[tuple[str, ...], list[str]] = {}
    for task, vector in vectors.items():
        if vector.extras:
            tasks_of.setdefault(tuple(vector.extras), []).append(task)
    return [
        f"{_listed(names)} of {_listed(tasks)} left out: stored whole, not as a difference"
        for names, tasks in tasks_of.items()
    ]


def _open(source: str, base: Checkpoint, selection: Selection) -> dict[str, TaskVector]:
    name, equals, path = source.partition("=")
    if not equals or Path(source).exists() or not re.fullmatch(TASK_NAME, name):
        return open_task_vectors(source, base, selection)
    found = open_task_vectors(path, base, selection)
    if len(found) != 1:
        raise UsageError(f"{source}: names one task, and {path} holds {len(found)}")
    return dict.fromkeys([name], *found.values())


def _in_extras(vector: TaskVector, base: Checkpoint) -> Iterator[tuple[str, TensorInfo]]:
    """Yields the base's floating tensors that a task stores whole, with their form there."""
    for name, info in base.tensors.items():
        stored = vector.extras.get(vector.model.finetuned_name(name))
        if stored is not None and info.shape and is_floating(info.dtype):
            yield name, stored


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
