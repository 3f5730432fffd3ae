"""The zoo: a folder of artifacts that share one base, described by `zoo.json`.

`zoo.json` is written last and atomically, so that a reader sees the zoo either before or after a change. A
task's file is always `tasks/<name>.fsw`; `zoo.json` has its size and SHA-256.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from flexswitch.codecs.errors import ArtifactError, InputError, unknown_name
from flexswitch.codecs.format.artifact_writer import ArtifactWriter, PackedTensor
from flexswitch.codecs.format.atomic import atomic_file
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.extra_forms import packed_extra
from flexswitch.codecs.format.records import BaseIdentity, Count, Sha256, Strict, TaskName, parse_strict

ZOO_FILE = "zoo.json"
INDEX_FILE = "index/exemplars.safetensors"


class TaskRecord(Strict):
    """The file of one task. parameters: number of entries of all compared tensors."""

    file: str
    size: Count
    sha256: Sha256
    method: str
    parameters: Count


class RoutingAccuracy(Strict):
    """Percentage of exemplars whose neighbours vote for their own task.

    *_loo: each exemplar left out from the search; the metric is learned from all, which makes it optimistic.
    *_held_out: a fifth held out from learning and search.
    """

    euclidean_loo: float
    euclidean_held_out: float
    learned_loo: float
    learned_held_out: float


class IndexRecord(Strict):
    """The file of the query index, and its settings.

    rank: number of columns of the points with a learned metric. accuracy: present if a metric was tried.
    """

    file: Literal["index/exemplars.safetensors"] = "index/exemplars.safetensors"
    size: Count
    sha256: Sha256
    features: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    normalise: Literal["none", "centred", "standardised"] = "none"
    metric: Literal["euclidean", "learned"] = "euclidean"
    rank: Annotated[int, Field(ge=1)] | None = None
    accuracy: RoutingAccuracy | None = None
    per_task: Annotated[int, Field(ge=1)]
    seed: int


class ZooRecord(Strict):
    """The JSON document `zoo.json`."""

    format: Literal["flexswitch-zoo"] = "flexswitch-zoo"
    version: Literal[1] = 1
    base: BaseIdentity
    adapter: str | None = None
    tasks: dict[TaskName, TaskRecord]
    index: IndexRecord | None = None


class Zoo(Mapping[str, Artifact]):
    """An open zoo: task name → artifact, sorted by name. Opening a task checks its hash."""

    def __init__(self, path: Path, record: ZooRecord) -> None:
        self.path = path
        self.record = record
        self._open: dict[str, Artifact] = {}

    def __getitem__(self, task: str) -> Artifact:
        """Returns a task's artifact.

        Raises: InputError on an unknown task; ArtifactError if its file is not the packed one.
        """
        if task not in self.record.tasks:
            raise InputError(f"{self.path}: {unknown_name('task', task, self)}")
        if task not in self._open:
            self._open[task] = self._checked(task)
        return self._open[task]

    def __contains__(self, task: object) -> bool:
        return task in self.record.tasks

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.record.tasks))

    def __len__(self) -> int:
        return len(self.record.tasks)

    def task_file(self, task: str) -> Path:
        """Returns the path of a task's artifact."""
        return self.path / self.record.tasks[task].file

    def index_file(self) -> Path:
        """Returns the path of the query index, after checking its hash. Raises: InputError, ArtifactError."""
        if self.record.index is None:
            raise InputError(
                f"{self.path}: the zoo has no query index; build one: "
                f"flexswitch index {self.path} --base BASE --exemplars DIR"
            )
        path = self.path / self.record.index.file
        _check_file(path, self.record.index.size, self.record.index.sha256, "the query index")
        return path

    def _checked(self, task: str) -> Artifact:
        record, path = self.record.tasks[task], self.task_file(task)
        _check_file(path, record.size, record.sha256, f"task '{task}'")
        artifact = open_artifact(path)
        if artifact.header.name != task or artifact.header.base.fingerprint != self.record.base.fingerprint:
            raise ArtifactError(
                f"{path}: holds task '{artifact.header.name}' of base "
                f"{artifact.header.base.fingerprint[:12]}, expected task '{task}' of base "
                f"{self.record.base.fingerprint[:12]}; pack the zoo again"
            )
        return artifact


def open_zoo(path: str | Path) -> Zoo:
    """Opens a zoo and validates `zoo.json`; tasks are checked when they are opened.

    Raises: InputError if there is no zoo; ArtifactError if `zoo.json` is invalid.
    """
    path = Path(path)
    file = path / ZOO_FILE
    if not file.is_file():
        raise InputError(f"{path}: not a zoo: it has no {ZOO_FILE}; make one with `flexswitch pack`")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as reason:
        raise ArtifactError(f"{file}: its JSON document does not parse ({reason})") from reason
    record = parse_strict(ZooRecord, file, text)
    for task, entry in record.tasks.items():
        if entry.file != _task_path(task):
            raise ArtifactError(
                f"{file}: task '{task}' names the file '{entry.file}', expected '{_task_path(task)}'; "
                "a task's file lies in the zoo's own folder; do not use a zoo that you did not make"
            )
    return Zoo(path, record)


def pack_task(artifact: Artifact, zoo: Path, tensors: Iterable[PackedTensor]) -> TaskRecord:
    """Writes an artifact to the zoo's folder with its tensors in another stored form; returns its record.

    tensors: one for each tensor of the artifact, in the same order.
    """
    header = artifact.header
    target = zoo / _task_path(header.name)
    target.parent.mkdir(exist_ok=True)
    with atomic_file(target, overwrite=False) as partial:
        with ArtifactWriter(partial) as writer:
            for name in header.extras:
                writer.add_extra(name, packed_extra(artifact.extra(name)))
            for name, packed in zip(header.tensors, tensors, strict=True):
                writer.add_tensor(name, packed)
            writer.finish(header)
        size, digest = partial.stat().st_size, file_sha256(partial)
    return TaskRecord(
        file=_task_path(header.name),
        size=size,
        sha256=digest,
        method=header.method.name,
        parameters=header.parameters,
    )


def write_zoo(path: Path, record: ZooRecord) -> None:
    """Writes `zoo.json`, with the tasks sorted by name."""
    ordered = record.model_copy(update={"tasks": dict(sorted(record.tasks.items()))})
    with atomic_file(path / ZOO_FILE, overwrite=True) as partial:
        partial.write_text(ordered.model_dump_json(indent=1) + "\n", encoding="utf-8")


def remove_unlisted(path: Path, record: ZooRecord) -> None:
    """Deletes the task files and the index that are no longer in `zoo.json`."""
    listed = {Path(task.file).name for task in record.tasks.values()}
    for file in (path / "tasks").glob("*.fsw"):
        if file.name not in listed:
            file.unlink()
    if record.index is None:
        shutil.rmtree(path / "index", ignore_errors=True)


def file_sha256(path: Path) -> str:
    """Returns a file's SHA-256 as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _task_path(task: str) -> str:
    return f"tasks/{task}.fsw"


def _check_file(path: Path, size: int, sha256: str, what: str) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path}: missing; zoo.json lists it as {what}; pack or index the zoo again")
    found = os.stat(path).st_size
    if found != size or file_sha256(path) != sha256:
        raise ArtifactError(
            f"{path}: is not the file that was packed as {what}: {found:,} bytes where zoo.json says "
            f"{size:,}, or another SHA-256; restore it from a copy, or pack it again"
        )
