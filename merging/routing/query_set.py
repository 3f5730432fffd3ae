"""The query set: features of a few exemplars a task, stored beside a zoo's tasks."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.atomic import atomic_file
from flexswitch.codecs.errors import ArtifactError, InputError
from flexswitch.codecs.records import CHECKSUM_KEY, METADATA_KEY, Strict, crc32, parse_document
from flexswitch.codecs.safetensors_file import RangeReader, SafetensorsWriter, read_header
from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.zoo import INDEX_FILE, IndexRecord, Zoo, file_sha256


class QuerySetHeader(Strict):
    """The JSON document of a query set: its tasks, in the order of their ids, and how it was made."""

    format: Literal["flexswitch-query-set"] = "flexswitch-query-set"
    version: Literal[1] = 1
    tasks: list[str]
    features: str
    per_task: int
    seed: int


@dataclass(frozen=True, eq=False)
class QuerySet:
    """features: (exemplar, width) float32; task_ids: (exemplar,) int32, indices into header.tasks."""

    header: QuerySetHeader
    features: FloatArray
    task_ids: NDArray[np.int32]


def write_query_set(zoo: Path, query_set: QuerySet) -> IndexRecord:
    """Writes a zoo's query set and returns its record for `zoo.json`."""
    path = zoo / INDEX_FILE
    path.parent.mkdir(exist_ok=True)
    text = query_set.header.model_dump_json()
    metadata = {METADATA_KEY: text, CHECKSUM_KEY: crc32(text.encode())}
    features, task_ids = query_set.features, query_set.task_ids
    with atomic_file(path, overwrite=True) as partial:
        with SafetensorsWriter(partial, metadata) as writer:
            writer.add("features", "F32", features.shape, [features.astype("<f4").tobytes()])
            writer.add("task_ids", "I32", task_ids.shape, [task_ids.astype("<i4").tobytes()])
        size, digest = partial.stat().st_size, file_sha256(partial)
    header = query_set.header
    return IndexRecord(
        size=size, sha256=digest, features=header.features, per_task=header.per_task, seed=header.seed
    )


def read_query_set(zoo: Zoo) -> QuerySet:
    """Returns a zoo's query set. Raises: InputError where it has none, ArtifactError where it is damaged."""
    path = zoo.index_file()
    stored = read_header(path, ArtifactError)
    header = parse_document(QuerySetHeader, path, stored.metadata.get(METADATA_KEY, ""), stored.metadata)
    layouts = {name: (tensor.dtype, len(tensor.shape)) for name, tensor in stored.tensors.items()}
    if layouts != {"features": ("F32", 2), "task_ids": ("I32", 1)}:
        raise ArtifactError(f"{path}: holds the tensors {layouts}, expected features and task_ids")
    file = RangeReader(path, ArtifactError)
    arrays = {
        name: file.read(tensor.offset, tensor.size).view(np.dtype(code))
        for (name, tensor), code in zip(sorted(stored.tensors.items()), ("<f4", "<i4"), strict=True)
    }
    features = arrays["features"].reshape(stored.tensors["features"].shape)
    task_ids = arrays["task_ids"]
    known = (task_ids >= 0) & (task_ids < len(header.tasks))
    if not 0 < len(features) == len(task_ids) or not known.all() or not np.isfinite(features).all():
        raise ArtifactError(f"{path}: its features and task ids do not fit together; index the zoo again")
    return QuerySet(header, features, task_ids)


def without_tasks(zoo: Zoo, removed: Collection[str]) -> IndexRecord | None:
    """Drops tasks from a zoo's query set, where it has one; returns its new record."""
    if zoo.record.index is None:
        return None
    old = read_query_set(zoo)
    gone = [task for task in old.header.tasks if task in removed]
    if not gone:
        return zoo.record.index
    kept = [task for task in old.header.tasks if task not in removed]
    if not kept:
        return None
    return write_query_set(zoo.path, _subset(old, kept))


def check_covers(query_set: QuerySet, tasks: Sequence[str], source: Path) -> None:
    """Raises: InputError where the query set lacks one of the tasks."""
    lacking = [task for task in tasks if task not in query_set.header.tasks]
    if lacking:
        raise InputError(
            f"{source}: the query index has no exemplars of the task '{lacking[0]}'; "
            f"build it again: flexswitch index {source} --base BASE --exemplars DIR"
        )


def _subset(query_set: QuerySet, tasks: list[str]) -> QuerySet:
    names = np.array(query_set.header.tasks)[query_set.task_ids]
    rows = np.isin(names, tasks)
    ids = np.array([tasks.index(name) for name in names[rows]], np.int32)
    header = query_set.header.model_copy(update={"tasks": tasks})
    return QuerySet(header, query_set.features[rows], ids)
