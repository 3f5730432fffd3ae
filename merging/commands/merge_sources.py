"""The task vectors that `merge` takes, from any mixture of sources, and which tensors it leaves out."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from flexswitch.codecs.errors import InputError, UsageError, unknown_name
from flexswitch.codecs.format.named_path import split_named_path
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.fingerprint import check_base
from flexswitch.merging.checkpoints.floating import is_floating
from flexswitch.merging.checkpoints.hashing import HashingCheckpoint
from flexswitch.merging.checkpoints.pairing import EVERYTHING, Selection
from flexswitch.merging.methods.registry import Method
from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.lora import LoraVector
from flexswitch.merging.task_vectors.open_vector import task_vector_openers
from flexswitch.merging.task_vectors.task_vector import TaskVector

_SHOWN = 4
_HALF = ("BF16", "F16")
_SELECTING = re.compile("--(?:exclude|key|on-resize) ")  # how messages say that a checkpoint can be opened


def open_sources(
    sources: Sequence[str], base: Checkpoint, selection: Selection, only: str | None = None
) -> dict[str, TaskVector]:
    """Returns the task vectors of `PATH` and `TASK=PATH` sources by task, in the order given.

    only: the one task to open. Raises: InputError, UsageError.
    """
    openers: dict[str, Callable[[], TaskVector]] = {}
    holders: dict[str, str] = {}
    for source in sources:
        for task, opener in _openers(source, base, selection, only).items():
            if task in openers:
                raise InputError(
                    f"{source}: holds the task '{task}', as {holders[task]} does; "
                    f"give it another name: NAME={source}"
                )
            openers[task], holders[task] = opener, source
    if not openers:
        raise InputError(
            f"{', '.join(sources)}: holds no task, expected at least one; pack an artifact first"
        )
    if only is not None and only not in openers:
        raise InputError(f"{', '.join(sources)}: {unknown_name('task', only, openers)}")
    return {task: opener() for task, opener in openers.items() if only in (task, None)}


def open_whole(sources: Sequence[str], base: Checkpoint, only: str | None = None) -> dict[str, TaskVector]:
    """Returns what `open_sources` does, for a command by whose options no tensors can be selected.

    Raises: InputError, UsageError.
    """
    try:
        return open_sources(sources, base, EVERYTHING, only)
    except InputError as reason:
        if not _SELECTING.search(str(reason)):
            raise
        way = "that is an option of `extract`: give the task vector that it makes"
        raise InputError(f"{reason}; {way}") from reason


def check_stored(vectors: Mapping[str, TaskVector], base: HashingCheckpoint, selection: Selection) -> None:
    """Checks that no stored task vector has to select its tensors anew, and its base if that is known.

    Raises: InputError, UsageError.
    """
    if base.known_fingerprint is not None:
        check_bases(vectors, base)
    for vector in vectors.values():
        if isinstance(vector, (CheckpointPair, LoraVector)):  # these are made from this very base
            continue
        if selection != EVERYTHING:
            raise UsageError(
                f"{vector.source}: its tensors were selected when it was made; --include, --exclude, "
                "--on-resize and --key need a checkpoint: give them to `extract` or `compress`"
            )


def check_bases(vectors: Mapping[str, TaskVector], base: Checkpoint) -> None:
    """Raises: InputError unless the base is that of every task vector; reads what is not hashed yet."""
    for vector in vectors.values():
        check_base(base, vector.identity(), vector.source)


def refuse_resized(
    vectors: Mapping[str, TaskVector], base: Checkpoint, selection: Selection, advice: str = ""
) -> None:
    """Raises: InputError if a task has a selected tensor of the base in another shape.

    advice: what to do about it, where the options of a merge cannot be given.
    """
    for vector in vectors.values():
        for name, info in _in_extras(vector, base):
            if selection.takes(name) and info.shape != base.tensors[name].shape:
                ways = "make the task vector again with --on-resize rows"
                if isinstance(vector, (CheckpointPair, LoraVector)):
                    ways = "take the overlapping rows with --on-resize rows"
                if selection.on_resize == "extra":
                    ways = f"a merge has no place for it whole, as --on-resize extra has it; {ways}"
                raise InputError(
                    f"{vector.source}: tensor '{name}' has the shape {list(info.shape)}, expected the base's "
                    f"{list(base.tensors[name].shape)}; "
                    + (advice or f"{ways}, or keep the base's with --exclude '{name}'")
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


def rounded(method: Method, vectors: Mapping[str, TaskVector]) -> list[str]:
    """Returns a line on the models whose rounding a merge by singular values would take for a change."""
    tasks = [
        task
        for task, vector in vectors.items()
        if isinstance(vector, CheckpointPair)
        and any(len(info.shape) == 2 and info.dtype in _HALF for info in vector.tensors.values())
    ]
    if "whole tensors" not in method.needs or not tasks:
        return []
    return [
        f"{method.name} takes the rounding of {_listed(tasks)} to 16 bits for changes in all directions; of "
        "models that LoRAs were merged into, give the LoRAs"
    ]


def _openers(
    source: str, base: Checkpoint, selection: Selection, only: str | None
) -> dict[str, Callable[[], TaskVector]]:
    name, path = split_named_path(source)
    if name is None:
        return task_vector_openers(path, base, selection, only)
    found = task_vector_openers(path, base, selection)
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
