"""Changes a zoo under its lock, so that it is at every moment as one whole `zoo.json` says.

Files are named by their content and moved into the zoo when they are whole, `zoo.json` is replaced last and
in one step, and only then are the files deleted that it no longer names. Nothing is written or deleted
through a link.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from flexswitch.codecs.errors import FlexswitchError, InputError
from flexswitch.codecs.format.artifact_writer import PackedTensor
from flexswitch.codecs.format.atomic import atomic_directory, flush, named_errors
from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.fields import TASK_NAME
from flexswitch.codecs.format.rewriting import rewrite_artifact
from flexswitch.codecs.format.working_folder import insist, remove_abandoned, working_folder
from flexswitch.codecs.format.zoo import (
    ZOO_FILE,
    Folder,
    StoredFile,
    TaskRecord,
    ZooRecord,
    content_name,
    file_sha256,
    no_zoo,
    open_zoo,
    task_record,
)

LOCK_FILE = ".lock"
_NAMES: dict[str, re.Pattern[str]] = {
    "tasks": re.compile(rf"{TASK_NAME}\.([0-9a-f]{{16}})\.fsw"),
    "shared": re.compile(r"vector\.([0-9a-f]{16})\.fsw"),
    "index": re.compile(r"exemplars\.([0-9a-f]{16})\.safetensors"),
}
_VERY_LONG = 1e9  # seconds; filelock refuses to wait without a limit for a lock of the same process


class Wait(NamedTuple):
    """How to wait for another writer: at most `seconds`, or for ever; note: receives a line that says so."""

    seconds: float | None = None
    note: Callable[[str], None] = lambda text: None


NO_LIMIT = Wait()


@dataclass(frozen=True)
class ZooWriter:
    """Writes into a zoo's folder `root`. work: a folder on the same disk, for files not yet whole."""

    root: Path
    work: Path

    def put(self, folder: Folder, stem: str, write: Callable[[Path], None]) -> StoredFile:
        """Stores a file that `write` writes to a path, under the name of its content."""
        partial = self.work / "new"
        write(partial)
        flush(partial)
        digest = file_sha256(partial)
        stored = StoredFile(content_name(folder, stem, digest), partial.stat().st_size, digest)
        try:
            (self.root / folder).mkdir(exist_ok=True)
            partial.replace(self.root / stored.file)
        except OSError as error:  # it names the working folder, which the user never sees
            raise InputError(f"{self.root / folder}: cannot be written: {error.strerror}") from error
        return stored

    def commit(self, record: ZooRecord) -> None:
        """Replaces `zoo.json`, with the tasks sorted by name."""
        ordered = record.model_copy(update={"tasks": dict(sorted(record.tasks.items()))})
        partial = self.work / "new"
        partial.write_text(ordered.model_dump_json(indent=1) + "\n", encoding="utf-8")
        for place in (partial, *(self.root / folder for folder in _NAMES if (self.root / folder).is_dir())):
            flush(place)
        partial.replace(self.root / ZOO_FILE)
        flush(self.root)


@contextmanager
def zoo_writer(path: Path, wait: Wait = NO_LIMIT) -> Iterator[ZooWriter]:
    """Yields the only writer of a zoo; at the end, files that `zoo.json` does not name are deleted.

    Raises: InputError if there is no zoo, another process holds it for too long, or parts of it are links.
    """
    _check_parts(path)
    with _locked(path, wait):
        _check_parts(path)  # again, as the zoo may have been replaced while it was waited for
        with _working(path) as writer:
            yield writer


@contextmanager
def _working(path: Path) -> Iterator[ZooWriter]:
    """Yields the writer of a zoo that is locked; at the end, unnamed files are deleted."""
    with working_folder(path / ZOO_FILE) as work, named_errors(work, path):
        remove_abandoned(path)  # of a writer that was killed while it made the zoo
        _remove_unnamed(path)  # of a writer that was killed while it changed the zoo
        try:
            yield ZooWriter(path, work)
        finally:
            insist(lambda: _remove_unnamed(path))


@contextmanager
def new_zoo_writer(path: Path, overwrite: bool, wait: Wait = NO_LIMIT) -> Iterator[ZooWriter]:
    """Yields the writer of a new zoo, which with `overwrite` replaces an old one when it commits.

    Raises: InputError as `atomic_directory` and `zoo_writer` do.
    """
    if overwrite and (path / ZOO_FILE).is_file():
        with zoo_writer(path, wait) as writer:
            yield writer
        return
    with atomic_directory(path, overwrite, refusal=lambda _: f"holds no {ZOO_FILE}") as partial:
        yield ZooWriter(partial, partial)


def pack_task(artifact: Artifact, writer: ZooWriter, tensors: Iterable[PackedTensor]) -> TaskRecord:
    """Stores an artifact in a zoo with its tensors in another stored form; returns its record.

    tensors: one for each compressed tensor of the artifact, in the same order. Those that are stored exactly
    stay as they are.
    """
    header = artifact.header
    stored = writer.put("tasks", header.name, lambda path: rewrite_artifact(artifact, path, header, tensors))
    return task_record(header, stored)


def _check_parts(path: Path) -> None:
    """Raises: InputError where there is no zoo, or a part of it is a link, or a file instead of a folder."""
    if not (path / ZOO_FILE).is_file():
        raise no_zoo(path)
    for name in (ZOO_FILE, LOCK_FILE, *_NAMES):
        if (path / name).is_symlink():
            raise InputError(
                f"{path / name}: is a link, and flexswitch changes nothing through links; "
                f"copy the zoo with `cp -RL {path} COPY` and change the copy"
            )
        if name in _NAMES and (path / name).exists() and not (path / name).is_dir():
            raise InputError(f"{path / name}: is a file, expected a folder; move it out of the zoo")


@contextmanager
def _locked(path: Path, wait: Wait) -> Iterator[None]:
    """Holds the lock of a zoo's writers. Raises: InputError."""
    from filelock import FileLock, Timeout

    lock = FileLock(path / LOCK_FILE)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            wait.note(f"waiting for another writer of {path}")
            lock.acquire(timeout=_VERY_LONG if wait.seconds is None else wait.seconds)
    except Timeout as error:
        raise InputError(
            f"{path}: another process still writes to it after {wait.seconds:g} seconds; run the command "
            "again when it has ended, or give a longer --lock-timeout"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be changed: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def _remove_unnamed(path: Path) -> None:
    """Deletes the files that flexswitch put into a zoo and that its `zoo.json` does not name.

    Only a regular file in the zoo's own folder goes, and only if its name has the hash of its content.
    """
    try:
        record = open_zoo(path).record
    except FlexswitchError:
        return
    others = [each.file for each in (record.shared, record.index) if each is not None]
    named = {task.file for task in record.tasks.values()} | set(others)
    for folder, pattern in _NAMES.items():
        place = path / folder
        if place.is_symlink() or not place.is_dir():
            continue
        for entry in list(os.scandir(place)):
            match = pattern.fullmatch(entry.name)
            if match is None or f"{folder}/{entry.name}" in named or not entry.is_file(follow_symlinks=False):
                continue
            with suppress(OSError):  # Windows keeps a file that a reader has open; the next writer deletes it
                if file_sha256(Path(entry.path)).startswith(match[1]):
                    os.unlink(entry.path)
        with suppress(OSError):  # it holds files
            place.rmdir()
