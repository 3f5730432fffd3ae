"""Compresses a task vector into an artifact, one tensor at a time."""

from collections.abc import Callable, Iterable
from functools import partial as bind
from pathlib import Path
from typing import Any

from flexswitch.codecs.atomic import atomic_file
from flexswitch.codecs.container import ArtifactHeader, ArtifactWriter, MethodRecord
from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.storage import choose_codec
from flexswitch.merging.compression.compressed import Delta
from flexswitch.merging.compression.registry import get_method
from flexswitch.merging.task_vector import TaskVector

# Up to here a delta is computed once and held (64 MiB in float32); above, once for each reading.
_HELD_ENTRIES = 1 << 24


def compress(
    vector: TaskVector,
    path: Path,
    name: str,
    method: str,
    settings: dict[str, Any],
    overwrite: bool,
    on_unit: Callable[[str], None] = lambda unit: None,
) -> None:
    """Writes a task vector's artifact; `on_unit` hears of each tensor before it is compressed.

    Tensors that keep nothing are left out; they decode to zeros. Raises: InputError, UsageError.
    """
    compress_tensor = get_method(method)
    with atomic_file(path, overwrite) as partial:
        header = ArtifactHeader(
            name=name,
            base=vector.identity(),
            model=vector.model,
            method=MethodRecord(name=method, settings=settings),
            parameters=vector.parameters,
        )
        with ArtifactWriter(partial, header) as writer:
            for extra in vector.extras:
                writer.add_extra(extra, vector.extra(extra))
            for unit, info in vector.units.items():
                on_unit(unit)
                compressed = compress_tensor(_delta(vector, unit), **settings)
                if len(compressed.sparse.levels):
                    codec = choose_codec(compressed.sparse)
                    writer.add_tensor(unit, compressed.sparse, compressed.scale, info.dtype, codec)


def _delta(vector: TaskVector, unit: str) -> Delta:
    """Returns a unit's delta, held in memory where it is small."""
    info = vector.units[unit]
    read: Callable[[], Iterable[FloatArray]] = bind(vector.blocks, unit)
    if info.entries <= _HELD_ENTRIES:
        blocks = list(read())
        read = bind(list, blocks)
    return Delta(unit, info.shape, read)
