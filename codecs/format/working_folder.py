"""The hidden folder beside an output in which it is made; those that killed processes left are removed.

A process locks its working folder for as long as it lives, so that the next writer of the same output can
tell whether the folder is still needed. Locks may not reach other hosts that share the file system; their
folders, which the name tells apart, are left alone.
"""

import hashlib
import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flexswitch.codecs.errors import InputError

if TYPE_CHECKING:
    from filelock import FileLock

_LOCK = ".lock"
_OLD = ".old"


@contextmanager
def working_folder(path: Path) -> Iterator[Path]:
    """Yields a new hidden folder beside the output `path` and removes it at the end.

    Those that killed processes left of the same output are removed first. Raises: InputError.
    """
    remove_abandoned(path)
    folder, lock = _unused_name(path), None
    try:  # from here on an interrupt removes it
        while lock is None:
            try:
                with suppress(FileExistsError):
                    folder.mkdir()
                    lock = _new_lock(folder)
            except OSError as error:
                raise InputError(f"{path}: cannot be written: {error.strerror}") from error
            if lock is None:
                folder = _unused_name(path)
        yield folder
    finally:
        insist(lambda: _clear(folder, path))
        if lock is not None:
            _release(lock, folder)


def insist(clean_up: Callable[[], None]) -> None:
    """Calls a function, and again if an interrupt stops it, so that it is done when the interrupt goes on."""
    try:
        clean_up()
    except KeyboardInterrupt:
        clean_up()
        raise


def set_aside(path: Path, folder: Path) -> None:
    """Moves an old output into its working folder, out of the way of the new one.

    If no new one takes its place, it returns: with the end of the working folder, or if the process is killed
    with the next writer.
    """
    path.rename(folder / _OLD)


def _unused_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_host()}-{secrets.token_hex(4)}.partial")


def remove_abandoned(path: Path) -> None:
    """Removes an output's working folders whose process is gone."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{_host()}-[0-9a-f]{{8}}\.partial")
    with suppress(OSError), os.scandir(path.parent) as entries:
        found = [entry for entry in entries if pattern.fullmatch(entry.name)]
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                _remove_if_abandoned(Path(entry.path), path)


def _remove_if_abandoned(folder: Path, path: Path) -> None:
    with suppress(OSError):
        lock = _locked(folder)
        if lock is None:
            return
        try:
            _clear(folder, path)
        finally:
            _release(lock, folder)


def _clear(folder: Path, path: Path) -> None:
    """Removes a working folder. An old output in it returns to its place if that is free."""
    old = folder / _OLD
    with suppress(OSError):
        if os.path.lexists(old) and not os.path.lexists(path):
            old.rename(path)  # raises if it cannot return, and then it stays where it is
        shutil.rmtree(folder, ignore_errors=True)


def _locked(folder: Path) -> "FileLock | None":
    """Returns the lock of a working folder, None if a process has it. Raises: OSError."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def _new_lock(folder: Path) -> "FileLock | None":
    """Returns the lock of a new working folder, None if another writer took it for an abandoned one.

    Raises: OSError.
    """
    with suppress(FileNotFoundError):
        return _locked(folder)
    return None


def _release(lock: "FileLock", folder: Path) -> None:
    """Releases the lock of a working folder that has been cleared."""
    lock.release()
    with suppress(OSError):  # Windows keeps the folder for as long as the lock's file is open
        folder.rmdir()


def _host() -> str:
    """Returns eight hexadecimal digits that tell this host from others."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]
