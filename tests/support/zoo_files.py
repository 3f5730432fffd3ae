"""The files of a zoo, whose names hold the hash of their content, and writing into a zoo without a lock."""

import re
from collections.abc import Iterable
from pathlib import Path

from flexswitch.codecs.format.index_record import IndexRecord
from flexswitch.codecs.format.zoo import ZooRecord, open_zoo
from flexswitch.codecs.format.zoo_writer import ZooWriter
from flexswitch.merging.routing.query_set import QuerySet, write_query_set

INDEX_FILE = "index/exemplars.safetensors"  # without the hash


def task_file(zoo: Path, task: str) -> Path:
    """Returns the file of a task."""
    return open_zoo(zoo).task_file(task)


def index_file(zoo: Path) -> Path:
    """Returns the one file of a zoo's query index."""
    (file,) = (zoo / "index").glob("exemplars.*.safetensors")
    return file


def without_hashes(names: Iterable[str]) -> set[str]:
    """Returns names of a zoo's files without the hash of their content."""
    return {re.sub(r"\.[0-9a-f]{16}(?=\.(fsw|safetensors)$)", "", name) for name in names}


def writer_of(zoo: Path) -> ZooWriter:
    """Returns a writer that takes no lock."""
    return ZooWriter(zoo, zoo)


def write_zoo(zoo: Path, record: ZooRecord) -> None:
    writer_of(zoo).commit(record)


def write_index(zoo: Path, query_set: QuerySet) -> IndexRecord:
    """Stores a query set and lists it in zoo.json."""
    record = write_query_set(writer_of(zoo), query_set)
    write_zoo(zoo, open_zoo(zoo).record.model_copy(update={"index": record}))
    return record
