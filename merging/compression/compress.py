"""Compresses a task vector into an artifact: tensors on several threads, written in order."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial as bind
from pathlib import Path
from typing import Any

from flexswitch.codecs.format.artifact_writer import ArtifactWriter, PackedTensor, packed_tensor
from flexswitch.codecs.format.atomic import atomic_file
from flexswitch.codecs.format.extra_forms import packed_extra
from flexswitch.codecs.format.records import MethodRecord
from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.storage import store
from flexswitch.codecs.threads import DEFAULT_JOBS, DEFAULT_MEMORY, WORKING_BYTES, map_in_order
from flexswitch.merging.compression.delta import Delta
from flexswitch.merging.compression.plan import NO_TRAINING, Job, Training, plan
from flexswitch.merging.compression.resume import SideFile
from flexswitch.merging.methods.registry import get_method
from flexswitch.merging.methods.settings import check_settings, recorded
from flexswitch.merging.task_vectors.task_vector import TaskVector

# Up to here a delta is computed once and held: in the processor's cache, or (64 MiB in float32) where
# computing it costs more than memory does. Above, it is computed for each reading.
_CACHED_ENTRIES, _HELD_ENTRIES = 1 << 20, 1 << 24


def compress(
    vector: TaskVector,
    path: Path,
    name: str,
    method: str,
    settings: Mapping[str, Any],
    overwrite: bool,
    on_tensor: Callable[[str], None] = lambda unit: None,
    jobs: int = DEFAULT_JOBS,
    memory: int = DEFAULT_MEMORY,
    resume: bool = False,
    training: Training = NO_TRAINING,
) -> None:
    """Writes a task vector's artifact; `on_tensor` hears of each tensor once it is compressed.

    Tensors that keep nothing are left out; they decode to zeros. jobs: threads. memory: bytes that the
    tensors in the making may take; one is always let in. With `resume` each finished tensor is kept in a
    side file, `path` with `.resume` behind it, until the artifact is whole; tensors that it holds already
    are not made again. The bytes depend on none of the three. training: what a learned method takes.
    Raises: InputError, UsageError.
    """
    made_by = recorded(check_settings(get_method(method, "compression"), settings))
    job = Job(name, MethodRecord(name=method, settings=made_by), jobs, training)
    chosen = plan(method, vector, job, settings)

    def work(unit: str) -> PackedTensor | None:
        info = vector.tensors[unit]
        compressed = chosen.compress(_delta(vector, unit, name))
        sparse = compressed.sparse
        if not len(sparse.levels):
            return None
        form = store(sparse, effort=chosen.effort)
        return packed_tensor(sparse, form, compressed.scale, info.dtype, compressed.zero)

    side = SideFile(path, vector, job, chosen.training) if resume else None
    with (
        atomic_file(path, overwrite) as partial,
        side or nullcontext(),
        ArtifactWriter(partial) as writer,
    ):
        for extra in vector.extras:
            writer.add_extra(extra, packed_extra(vector.extra(extra)))
        for unit, packed in _packed(vector, work, side, jobs, memory):
            on_tensor(unit)
            if packed is not None:
                writer.add_tensor(unit, packed)
        # Last, because reading the tensors has hashed most of the base.
        writer.finish(job.header(vector, chosen.training))
    if side is not None:
        side.remove()


def _packed(
    vector: TaskVector,
    work: Callable[[str], PackedTensor | None],
    side: SideFile | None,
    jobs: int,
    memory: int,
) -> Iterator[tuple[str, PackedTensor | None]]:
    """Yields each unit with its stored form, or None where it keeps nothing, in the units' order."""
    finished: frozenset[str] = side.finished() if side else frozenset()
    missing = [unit for unit in vector.tensors if unit not in finished]

    def cost(unit: str) -> int:
        return vector.tensors[unit].entries * WORKING_BYTES

    made = map_in_order(work, _read_ahead(vector, missing), jobs, cost, memory)
    for unit in vector.tensors:
        if side is not None and unit in finished:
            yield unit, side.read(unit)
            continue
        packed = next(made)
        if side is not None:
            side.add(unit, packed)
        yield unit, packed


def _read_ahead(vector: TaskVector, tensors: list[str]) -> Iterable[str]:
    """Yields the units; while one is worked on, the system reads the next."""
    for unit, following in zip(tensors, [*tensors[1:], None], strict=True):
        if following is not None:
            vector.read_ahead(following)
        yield unit


def _delta(vector: TaskVector, unit: str, task: str) -> Delta:
    """Returns a unit's delta, held in memory where that is quicker than to compute it again."""
    info = vector.tensors[unit]
    read: Callable[[], Iterable[FloatArray]] = bind(vector.blocks, unit)
    if info.entries <= (_CACHED_ENTRIES if vector.is_cheap(unit) else _HELD_ENTRIES):
        blocks = list(read())
        read = bind(list, blocks)
    return Delta(unit, info.shape, read, task)
