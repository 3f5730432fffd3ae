"""The query set: a few exemplars of each task, stored in a zoo as the points of the search."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.errors import ArtifactError, InputError
from flexswitch.codecs.format.documents import parse_document
from flexswitch.codecs.format.index_record import IndexRecord, RoutingAccuracy
from flexswitch.codecs.format.records import CHECKSUM_KEY, METADATA_KEY, crc32
from flexswitch.codecs.format.safetensors_file import RangeReader, SafetensorsWriter
from flexswitch.codecs.format.strict import Strict
from flexswitch.codecs.format.zoo import INDEX_STEM, StoredFile, Zoo
from flexswitch.codecs.format.zoo_writer import ZooWriter
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.routing.projection import Projection

_DTYPES = {"F16": "<f2", "F32": "<f4", "I32": "<i4"}


class QuerySetHeader(Strict):
    """The JSON document of a query set: its tasks, in the order of their ids, and its settings.

    parts: the number of layers in the features; averaged: the tasks of the average that computes them, if
    they are features of an average.
    """

    format: Literal["flexswitch-query-set"] = "flexswitch-query-set"
    version: Literal[1] = 1
    tasks: list[str]
    features: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    parts: int = 1
    averaged: list[str] | None = None
    accuracy: RoutingAccuracy | None = None
    per_task: int
    seed: int


@dataclass(frozen=True, eq=False)
class QuerySet:
    """points: (exemplar, rank) float32; task_ids: (exemplar,) int32, indices into header.tasks.

    projection: maps features to points; None if the points are the features.
    """

    header: QuerySetHeader
    points: FloatArray
    task_ids: NDArray[np.int32]
    projection: Projection | None = None


def write_query_set(writer: ZooWriter, query_set: QuerySet) -> IndexRecord:
    """Stores a query set in a zoo and returns its record for `zoo.json`.

    Projected points are stored as float16. Raises: InputError if one is too large for float16.
    """
    tensors = _tensors(query_set)
    text = query_set.header.model_dump_json(exclude_none=True)
    metadata = {METADATA_KEY: text, CHECKSUM_KEY: crc32(text.encode())}

    def write(path: Path) -> None:
        with SafetensorsWriter(path, metadata) as file:
            for name, (dtype, array) in tensors.items():
                file.add(name, dtype, array.shape, [array.astype(_DTYPES[dtype]).tobytes()])

    return index_record(query_set, writer.put("index", INDEX_STEM, write))


def _tensors(query_set: QuerySet) -> dict[str, tuple[str, NDArray[Any]]]:
    """Returns the stored tensors: name → safetensors dtype and array."""
    projection = query_set.projection
    found: dict[str, tuple[str, NDArray[Any]]] = {"points": ("F32", query_set.points)}
    if projection is not None:
        found["points"] = ("F16", as_stored(query_set.points))
        arrays = {"mean": projection.mean, "deviation": projection.deviation, "metric": projection.metric}
        found |= {name: ("F32", array) for name, array in arrays.items() if array is not None}
    return found | {"task_ids": ("I32", query_set.task_ids)}


def as_stored(points: FloatArray) -> NDArray[np.float16]:
    """Returns points as float16, (exemplar, rank). Raises: InputError if one is too large."""
    largest = np.finfo(np.float16).max
    if len(points) and np.abs(points).max() > largest:
        raise InputError(
            f"the exemplars' points reach {np.abs(points).max():.3g}, and float16 holds up to {largest}; "
            "use --normalise centred"
        )
    return points.astype(np.float16) + np.float16(0)  # zeros without a sign, as it is that of rounding errors


def index_record(query_set: QuerySet, stored: StoredFile) -> IndexRecord:
    """Returns what `zoo.json` says of a query set."""
    header, projection = query_set.header, query_set.projection
    learned = projection is not None and projection.metric is not None
    return IndexRecord(
        **stored._asdict(),
        features=header.features,
        dtype=header.dtype,
        normalise="none" if projection is None else projection.normalise,
        metric="learned" if learned else "euclidean",
        rank=query_set.points.shape[1] if learned else None,
        accuracy=header.accuracy,
        per_task=header.per_task,
        seed=header.seed,
    )


def read_query_set(zoo: Zoo) -> QuerySet:
    """Returns a zoo's query set. Raises: InputError if it has none; ArtifactError if it is damaged."""
    path = zoo.index_file()
    file = RangeReader(path, ArtifactError)
    stored = file.header()
    header = parse_document(QuerySetHeader, path, stored.metadata.get(METADATA_KEY, ""), stored.metadata)
    layouts = {name: (tensor.dtype, len(tensor.shape)) for name, tensor in stored.tensors.items()}
    if layouts not in _LAYOUTS:
        raise ArtifactError(f"{path}: holds the tensors {layouts}, expected points and task_ids")
    arrays = {
        name: file.read(tensor.offset, tensor.size).view(_DTYPES[tensor.dtype]).reshape(tensor.shape)
        for name, tensor in stored.tensors.items()
    }
    found = QuerySet(
        header, arrays["points"].astype(np.float32), arrays["task_ids"], _projection(header, arrays)
    )
    if not _fits(found, arrays):
        raise ArtifactError(f"{path}: its points and task ids do not fit together; index the zoo again")
    return found


def _layouts() -> list[dict[str, tuple[str, int]]]:
    """Returns the permitted sets of tensors: name → dtype and number of dimensions."""
    ids = {"task_ids": ("I32", 1)}
    mean, deviation, metric = ({name: ("F32", 1 + (name == "metric"))} for name in _MATRICES)
    projected = ids | {"points": ("F16", 2)}
    normalised = [projected | mean, projected | mean | deviation]
    return [ids | {"points": ("F32", 2)}, projected | metric, *normalised, *(n | metric for n in normalised)]


_MATRICES = ("mean", "deviation", "metric")
_LAYOUTS = _layouts()


def _projection(header: QuerySetHeader, arrays: Mapping[str, NDArray[Any]]) -> Projection | None:
    found = {name: arrays[name] for name in _MATRICES if name in arrays}
    return Projection(header.parts, **found) if found else None


def _fits(query_set: QuerySet, arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Returns whether ids, points and projection match and all numbers are finite."""
    ids, projection = query_set.task_ids, query_set.projection
    known = (ids >= 0) & (ids < len(query_set.header.tasks))
    if not 0 < len(query_set.points) == len(ids) or not known.all():
        return False
    if not all(np.isfinite(array).all() for array in arrays.values()):
        return False
    if projection is None:
        return True
    widths = {
        each.shape[-1]
        for each in (projection.mean, projection.deviation, projection.metric)
        if each is not None
    }
    rank = projection.width if projection.metric is None else len(projection.metric)
    parts = query_set.header.parts
    divides = parts > 0 and projection.width % parts == 0
    positive = projection.deviation is None or (projection.deviation > 0).all()
    return len(widths) == 1 and rank == query_set.points.shape[1] and divides and bool(positive)


def without_tasks(zoo: Zoo, removed: Collection[str], writer: ZooWriter) -> IndexRecord | None:
    """Stores a zoo's query set, if it has one, again without some tasks; returns its new record.

    The projection stays. The result is None if no exemplars are left, or if the features are those of an
    average over a removed task, which can no longer be computed.
    """
    if zoo.record.index is None:
        return None
    old = read_query_set(zoo)
    gone = [task for task in old.header.tasks if task in removed]
    if set(old.header.averaged or ()) & set(removed):
        return None
    if not gone:
        return zoo.record.index
    kept = [task for task in old.header.tasks if task not in removed]
    if not kept:
        return None
    return write_query_set(writer, _subset(old, kept))


def check_covers(query_set: QuerySet, tasks: Sequence[str], source: Path) -> None:
    """Raises: InputError if the query set lacks one of the tasks."""
    lacking = [task for task in tasks if task not in query_set.header.tasks]
    if lacking:
        raise InputError(
            f"{source}: the query index has no exemplars of the task '{lacking[0]}'; "
            f"add them: flexswitch index {source} --add --base BASE --exemplars DIR"
        )


def _subset(query_set: QuerySet, tasks: list[str]) -> QuerySet:
    names = np.array(query_set.header.tasks)[query_set.task_ids]
    rows = np.isin(names, tasks)
    ids = np.array([tasks.index(name) for name in names[rows]], np.int32)
    header = query_set.header.model_copy(update={"tasks": tasks})
    return QuerySet(header, query_set.points[rows], ids, query_set.projection)
