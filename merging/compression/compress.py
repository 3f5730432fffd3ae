"""Compresses a task vector into an artifact: tensors on several threads, written in name order."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial as bind
from pathlib import Path
from typing import Any

from flexswitch.codecs.format.artifact_writer import ArtifactWriter
from flexswitch.codecs.format.atomic import atomic_file
from flexswitch.codecs.format.records import MethodRecord
from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.threads import DEFAULT_JOBS, DEFAULT_MEMORY, map_in_order, one_torch_thread
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.compression.delta import Delta, Squares
from flexswitch.merging.compression.extras import Extras, describe_extras, pack_extras
from flexswitch.merging.compression.packed import packed
from flexswitch.merging.compression.plan import NO_TRAINING, ExactPlan, Job, Plan, Training, plan
from flexswitch.merging.compression.relative_error import EXACT, error_record, squares_of
from flexswitch.merging.compression.resume import Finished, SideFile
from flexswitch.merging.methods.registry import get_method
from flexswitch.merging.methods.settings import check_settings, recorded
from flexswitch.merging.task_vectors.task_vector import TaskVector

# Deltas of up to this many entries are computed once and held in memory, larger ones for each reading. The
# first limit fits the processor's cache; the second (64 MiB) is for deltas that are slow to recompute.
CACHED_ENTRIES, HELD_ENTRIES = 1 << 20, 1 << 24


def compress(
    vector: TaskVector,
    path: Path,
    name: str,
    method: str,
    settings: Mapping[str, Any],
    overwrite: bool,
    on_tensor: Callable[[str], None] = lambda name: None,
    jobs: int = DEFAULT_JOBS,
    memory: int = DEFAULT_MEMORY,
    resume: bool = False,
    training: Training = NO_TRAINING,
    extras_as: Extras = "exact",
) -> None:
    """Writes a task vector's artifact and calls `on_tensor` with the name of each finished tensor.

    Tensors without kept entries are left out; they decode to zeros. jobs: number of threads. memory: limit
    in bytes for the tensors that are compressed at the same time; one is always allowed. resume: keep
    finished tensors in a side file, `path` with the suffix `.resume`, until the artifact is complete, and
    reuse those of an interrupted run. The artifact's bytes depend on none of these three. training: inputs
    of a learned method. extras_as: how the task's own tensors are stored.

    Raises: InputError, UsageError.
    """
    made_by = recorded(check_settings(get_method(method, "compression"), settings))
    job = Job(name, MethodRecord(name=method, settings=made_by), jobs, training, extras_as, memory=memory)
    chosen = plan(method, vector, job, settings)
    write_artifact(vector, path, job, chosen, overwrite, on_tensor, memory, resume)


def write_artifact(
    vector: TaskVector,
    path: Path,
    job: Job,
    chosen: Plan | ExactPlan,
    overwrite: bool = False,
    on_tensor: Callable[[str], None] = lambda name: None,
    memory: int = DEFAULT_MEMORY,
    resume: bool = False,
) -> None:
    """Writes a task vector's artifact by a plan; see `compress`."""
    if isinstance(chosen, ExactPlan):
        work: Callable[[str], Finished] = bind(_exact, chosen)
        tensors, extras, one_thread = chosen.tensors, chosen.extras, False
    else:
        work, tensors, one_thread = bind(_compressed, vector, chosen, job), vector.tensors, chosen.one_thread
        extras = pack_extras(vector, vector.extras, job.extras) if chosen.extras is None else chosen.extras
    if note := describe_extras(extras):
        job.training.on_note(note)
    side = SideFile(path, vector, job, chosen.training) if resume else None
    squares: dict[str, Squares] = {}
    with (
        atomic_file(path, overwrite) as partial,
        side or nullcontext(),
        one_torch_thread() if one_thread else nullcontext(),
        ArtifactWriter(partial) as writer,
    ):
        for extra, stored in extras.items():
            writer.add_extra(extra, stored)
        for tensor, finished in _finished(vector, tensors, work, side, job.jobs, chosen.entry_bytes, memory):
            on_tensor(tensor)
            squares[tensor] = finished.squares
            if finished.packed is not None:
                writer.add_tensor(tensor, finished.packed)
        # A task's values by a shared vector are no delta that could be compared with its own.
        error = error_record(squares) if job.shared is None else None
        # Last, because reading the tensors has hashed most of the base.
        writer.finish(job.header(vector, chosen.training, error))
    if side is not None:
        side.remove()


def _exact(chosen: ExactPlan, tensor: str) -> Finished:
    return Finished(chosen.pack(tensor), EXACT)


def _compressed(vector: TaskVector, chosen: Plan, job: Job, tensor: str) -> Finished:
    delta = _delta(vector, tensor, job.task)
    compressed = chosen.compress(delta)
    squares = squares_of(delta, compressed) if job.shared is None else EXACT
    dtype = vector.tensors[tensor].dtype
    return Finished(packed(compressed, chosen.effort, dtype), squares)


def _finished(
    vector: TaskVector,
    tensors: Mapping[str, TensorInfo],
    work: Callable[[str], Finished],
    side: SideFile | None,
    jobs: int,
    entry_bytes: int,
    memory: int,
) -> Iterator[tuple[str, Finished]]:
    """Yields each tensor as it is stored, in order."""
    before: frozenset[str] = side.finished() if side else frozenset()
    missing = [tensor for tensor in tensors if tensor not in before]

    def cost(tensor: str) -> int:
        return tensors[tensor].entries * entry_bytes

    made = map_in_order(work, _read_ahead(vector, missing), jobs, cost, memory)
    for tensor in tensors:
        if side is not None and tensor in before:
            yield tensor, side.read(tensor)
            continue
        finished = next(made)
        if side is not None:
            side.add(tensor, finished)
        yield tensor, finished


def _read_ahead(vector: TaskVector, tensors: list[str]) -> Iterable[str]:
    """Yields each name, after asking the system to read the tensor that follows it."""
    for tensor, following in zip(tensors, [*tensors[1:], None], strict=True):
        if following is not None:
            vector.hints.read_ahead(following)
        yield tensor


def _delta(vector: TaskVector, tensor: str, task: str) -> Delta:
    """Returns a tensor's delta, held in memory where that is faster than computing it again."""
    info = vector.tensors[tensor]
    read: Callable[[], Iterable[FloatArray]] = bind(vector.blocks, tensor)
    if info.entries <= (CACHED_ENTRIES if vector.hints.recomputing_is_cheap else HELD_ENTRIES):
        blocks = list(read())
        return Delta(tensor, info.shape, bind(list, blocks), task)
    sample = vector.hints.sample
    return Delta(tensor, info.shape, read, task, sample and bind(sample, tensor))
