"""The zoo: a folder of artifacts that share one base, described by `zoo.json`.

A file's name has the first digits of the hash of its content, and no file that `zoo.json` names ever changes:
a changed zoo has other files. `zoo_writer.py` writes zoos.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from flexswitch.codecs.argument_types import PATH, check_argument, is_path
from flexswitch.codecs.errors import ArtifactError, FlexswitchError, InputError, unknown_name
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.documents import parse_strict
from flexswitch.codecs.format.fields import Count, RelativeError, Sha256, TaskName
from flexswitch.codecs.format.index_record import IndexRecord
from flexswitch.codecs.format.open_files import allow_open_files
from flexswitch.codecs.format.records import ArtifactHeader, BaseIdentity
from flexswitch.codecs.format.shared_vector import check_shared, join
from flexswitch.codecs.format.strict import Strict

ZOO_FILE = "zoo.json"
INDEX_STEM = "exemplars"
SHARED_STEM = "vector"
_SUFFIXES = {"tasks": ".fsw", "shared": ".fsw", "index": ".safetensors"}
_NAME_DIGITS = 16

Folder = Literal["tasks", "shared", "index"]
Result = TypeVar("Result")


class StoredFile(NamedTuple):
    """A file of a zoo: its path in the zoo, its size in bytes, its SHA-256."""

    file: str
    size: int
    sha256: str


class TaskRecord(Strict):
    """The file of a task or of a shared vector.

    parameters: number of entries of all compared tensors. relative_error: ‖τ − τ̂‖ / ‖τ‖ over all of them.
    """

    file: str
    size: Count
    sha256: Sha256
    method: str
    parameters: Count
    relative_error: RelativeError | None = None


class ZooRecord(Strict):
    """The JSON document `zoo.json`."""

    format: Literal["flexswitch-zoo"] = "flexswitch-zoo"
    version: Literal[1] = 1
    base: BaseIdentity
    adapter: str | None = None
    tasks: dict[TaskName, TaskRecord]
    shared: TaskRecord | None = None
    index: IndexRecord | None = None


class Zoo(Mapping[str, Artifact]):
    """An open zoo: task name → artifact, sorted by name.

    A task is opened, and its hash checked, when it is first asked for. From then on it stays as it is, even
    if the zoo is changed.
    """

    def __init__(self, path: Path, record: ZooRecord) -> None:
        self.path = path
        self.record = record
        self._open: dict[str, Artifact] = {}
        self._shared: Artifact | None = None

    def __getitem__(self, task: str) -> Artifact:
        """Returns a task's artifact.

        Raises: InputError on an unknown task; ArtifactError if its file is not the packed one.
        """
        if task not in self.record.tasks:
            raise InputError(f"{self.path}: {unknown_name('task', task, self)}")
        if task not in self._open:
            allow_open_files(len(self._open))
            self._open[task] = self.open_task(task)
        return self._open[task]

    def __contains__(self, task: object) -> bool:
        return task in self.record.tasks

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.record.tasks))

    def __len__(self) -> int:
        return len(self.record.tasks)

    def stored_bytes(self) -> int:
        """Returns the size of all tasks and of what they share."""
        shared = 0 if self.record.shared is None else self.record.shared.size
        return shared + sum(record.size for record in self.record.tasks.values())

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

    def open_task(self, task: str) -> Artifact:
        """Returns a task's artifact, newly opened; its file stays open with it. Raises: ArtifactError."""
        artifact = self._opened(self.record.tasks[task], f"task '{task}'", f"tasks.{task}")
        header = artifact.header
        if header.name != task or header.base.fingerprint != self.record.base.fingerprint:
            raise ArtifactError(
                f"{artifact.path}: holds task '{header.name}' of base {header.base.fingerprint[:12]}, "
                f"expected task '{task}' of base {self.record.base.fingerprint[:12]}; pack the zoo again"
            )
        if header.shared is not None:
            listed = self.record.shared
            join(artifact, self.shared(), None if listed is None else listed.sha256)
        return artifact

    def shared(self) -> Artifact | None:
        """Returns the vector that tasks share, None if the zoo has none. Raises: ArtifactError."""
        if self._shared is None and self.record.shared is not None:
            opened = self._opened(self.record.shared, "the shared vector", "shared")
            check_shared(opened, self.record.base.fingerprint)
            self._shared = opened
        return self._shared

    def _opened(self, record: TaskRecord, what: str, place: str) -> Artifact:
        """Returns an artifact of which `zoo.json` says, at a place, nothing that the artifact does not say.

        Raises: ArtifactError.
        """
        path = self.path / record.file
        try:
            _check_file(path, record.size, record.sha256, what)
            artifact = open_artifact(path)
            artifact.hold()
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            raise InputError(
                f"{path}: this process may not open more files, and {self.path} has {len(self):,} tasks; "
                "raise the limit with `ulimit -n`"
            ) from error
        own = task_record(artifact.header, StoredFile(record.file, record.size, record.sha256))
        check_record(self.path, place, record, own, "pack the task again")
        return artifact


def check_record(
    zoo: Path, place: str, listed: TaskRecord | IndexRecord, own: TaskRecord | IndexRecord, advice: str
) -> None:
    """Raises: ArtifactError where `zoo.json` says of a file at `place` what the file itself does not say."""
    said = dict(own)
    for field, value in dict(listed).items():
        if said[field] != value:
            raise ArtifactError(
                f"{zoo / ZOO_FILE}: its field '{place}.{field}' is {value!r}, and {listed.file} says "
                f"{said[field]!r}; {advice}"
            )


def open_zoo(path: str | Path) -> Zoo:
    """Opens a zoo and validates `zoo.json`; tasks are checked when they are opened.

    Raises: InputError if there is no zoo; ArtifactError if `zoo.json` is invalid.
    """
    check_argument("open_zoo", "path", path, is_path(path), PATH)
    path = Path(path)
    file = path / ZOO_FILE
    if not file.is_file():
        raise no_zoo(path)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as reason:
        raise ArtifactError(f"{file}: its JSON document does not parse ({reason})") from reason
    record = parse_strict(ZooRecord, file, text)
    for task, entry in record.tasks.items():
        _check_name(file, f"task '{task}'", entry.file, content_name("tasks", task, entry.sha256))
    if (shared := record.shared) is not None:
        expected = content_name("shared", SHARED_STEM, shared.sha256)
        _check_name(file, "the shared vector", shared.file, expected)
    if (index := record.index) is not None:
        _check_name(file, "the query index", index.file, content_name("index", INDEX_STEM, index.sha256))
    return Zoo(path, record)


def no_zoo(path: Path) -> InputError:
    """Returns the error that a folder is no zoo."""
    return InputError(f"{path}: not a zoo: it has no {ZOO_FILE}; make one with `flexswitch pack`")


def read_zoo(path: str | Path, read: Callable[[Zoo], Result]) -> Result:
    """Returns what `read` returns of the open zoo.

    If reading fails because another process changes the zoo meanwhile, the changed zoo is read.
    Raises: FlexswitchError.
    """
    zoo = open_zoo(path)
    while True:
        try:
            return read(zoo)
        except (FlexswitchError, FileNotFoundError):
            changed = open_zoo(path)
            if changed.record == zoo.record:
                raise
            zoo = changed


def task_record(header: ArtifactHeader, stored: StoredFile) -> TaskRecord:
    """Returns what `zoo.json` says of a task."""
    return TaskRecord(
        **stored._asdict(),
        method=header.method.name,
        parameters=header.parameters,
        relative_error=None if header.error is None else header.error.relative,
    )


def content_name(folder: Folder, stem: str, sha256: str) -> str:
    """Returns the path that a file has in a zoo.

    >>> content_name("tasks", "sst2", 64 * "a")
    'tasks/sst2.aaaaaaaaaaaaaaaa.fsw'
    """
    return f"{folder}/{stem}.{sha256[:_NAME_DIGITS]}{_SUFFIXES[folder]}"


def file_sha256(path: Path) -> str:
    """Returns a file's SHA-256 as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_name(file: Path, what: str, found: str, expected: str) -> None:
    if found != expected:
        raise ArtifactError(
            f"{file}: {what} names the file '{found}', expected '{expected}', which its hash gives; do not "
            "use a zoo that you did not make"
        )


def _check_file(path: Path, size: int, sha256: str, what: str) -> None:
    if not path.is_file():
        raise ArtifactError(
            f"{path}: missing; zoo.json lists it as {what}; open the zoo again if another process has "
            "changed it, else pack or index it again"
        )
    found = os.stat(path).st_size
    if found != size or file_sha256(path) != sha256:
        raise ArtifactError(
            f"{path}: is not the file that was packed as {what}: {found:,} bytes where zoo.json says "
            f"{size:,}, or another SHA-256; restore it from a copy, or pack it again"
        )
