"""Query sets made by hand, and their files."""

import shutil
from pathlib import Path

import numpy as np
from support.zoo_files import index_file, writer_of

from flexswitch.codecs.format.index_record import IndexRecord
from flexswitch.codecs.format.records import CHECKSUM_KEY, METADATA_KEY, BaseIdentity, crc32
from flexswitch.codecs.format.safetensors_file import SafetensorsWriter
from flexswitch.codecs.format.zoo import INDEX_STEM, Zoo, ZooRecord, content_name, file_sha256
from flexswitch.merging.routing.query_set import QuerySet, QuerySetHeader, write_query_set

TASKS = ["birds", "cities", "tools"]
UNFIT = "its points and task ids do not fit together; index the zoo again"


def make_query_set(per_task: int = 4, width: int = 5, tasks: list[str] = TASKS) -> QuerySet:
    generator = np.random.Generator(np.random.PCG64(per_task))
    features = generator.normal(size=(per_task * len(tasks), width)).astype(np.float32)
    ids = np.repeat(np.arange(len(tasks), dtype=np.int32), per_task)
    header = QuerySetHeader(tasks=tasks, features="layer:1", per_task=per_task, seed=7)
    return QuerySet(header, features, ids)


def zoo_with(path: Path, record: IndexRecord | None) -> Zoo:
    base = BaseIdentity(fingerprint="0" * 64)
    return Zoo(path, ZooRecord(base=base, tasks={}, index=record))


def indexed(path: Path, query_set: QuerySet) -> Zoo:
    return zoo_with(path, write_query_set(writer_of(path), query_set))


def as_packed(path: Path) -> Zoo:
    """Returns a zoo whose zoo.json records the index file as it is on disk, under the name of its content."""
    file = index_file(path)
    digest, size = file_sha256(file), file.stat().st_size
    name = content_name("index", INDEX_STEM, digest)
    file.rename(path / name)
    record = IndexRecord(file=name, size=size, sha256=digest, features="layer:1", per_task=4, seed=7)
    return zoo_with(path, record)


def write_by_hand(path: Path, tensors: dict[str, tuple[str, np.ndarray]], document: str | None = None) -> Zoo:
    """Writes an index file of any tensors under a header with the right checksum."""
    text = make_query_set().header.model_dump_json() if document is None else document
    shutil.rmtree(path / "index", ignore_errors=True)
    (path / "index").mkdir()
    file = path / content_name("index", INDEX_STEM, 64 * "0")
    with SafetensorsWriter(file, {METADATA_KEY: text, CHECKSUM_KEY: crc32(text.encode())}) as writer:
        for name, (dtype, array) in tensors.items():
            writer.add(name, dtype, array.shape, [array.tobytes()])
    return as_packed(path)


def plain_tensors(query_set: QuerySet) -> dict[str, tuple[str, np.ndarray]]:
    return {"points": ("F32", query_set.points), "task_ids": ("I32", query_set.task_ids)}
