"""Writes outputs beside their place and moves them in whole, so that none is ever seen half-written."""

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flexswitch.codecs.errors import InputError


def check_output(path: Path, overwrite: bool) -> None:
    """Checks an output's place before any work is done.

    Raises: InputError where the folder is missing, or the output exists and may not be replaced.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; give another output, or --overwrite to replace it")


def check_space(path: Path, needed_bytes: int) -> None:
    """Raises: InputError where the disk that holds `path` has less than `needed_bytes` free."""
    free = shutil.disk_usage(path.parent).free
    if free < needed_bytes:
        raise InputError(
            f"{path}: the output takes {needed_bytes:,} bytes and the disk has {free:,} free; "
            "free some space or give an output on another disk"
        )


@contextmanager
def atomic_file(path: Path, overwrite: bool) -> Iterator[Path]:
    """Gives a temporary path beside `path`; on leaving it is flushed to disk and takes its place.

    On any exception the temporary file is removed and `path` stays as it was. Raises: InputError.
    """
    check_output(path, overwrite)
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a file's place; give a file name")
    partial = _unused_name(path)
    try:  # what an interrupt finds from here on is removed, be it just made
        with _told_where(path):
            partial.touch(exist_ok=False)
        yield partial
        _flush(partial)
        partial.replace(path)
    except OSError as error:
        _raise_named(error, partial, path)
        raise
    finally:
        with suppress(OSError):  # it may be in its place, or was never made
            partial.unlink()


@contextmanager
def atomic_directory(path: Path, overwrite: bool, holds: str = "*") -> Iterator[Path]:
    """Gives a temporary folder beside `path`; on leaving it takes its place whole.

    A folder is replaced only if it is empty or holds a file of the pattern `holds`: no other was made by
    the same command. On any exception the temporary folder is removed and `path` stays as it was.
    Raises: InputError.
    """
    check_output(path, overwrite)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file, expected a folder's place; give a folder name")
    if path.is_dir() and any(path.iterdir()) and not any(path.glob(holds)):
        raise InputError(f"{path}: holds no {holds}, so --overwrite does not replace it; give another output")
    partial = _unused_name(path)
    try:  # what an interrupt finds from here on is removed, be it just made
        with _told_where(path):
            partial.mkdir()
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.exists():
            _swap(partial, path)
        else:
            partial.rename(path)
    except (OSError, InputError) as error:
        _raise_named(error, partial, path)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unused_name(path: Path) -> Path:
    """Returns a hidden name beside `path` that nothing else uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


@contextmanager
def _told_where(path: Path) -> Iterator[None]:
    """Turns an error of making the temporary place into one that names the output."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: can't be written there: {error.strerror}") from error


def _swap(partial: Path, path: Path) -> None:
    """Puts `partial` in the place of `path`; the old folder returns if that fails."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    old = aside / path.name
    try:
        path.rename(old)
        partial.rename(path)
    except BaseException:
        if os.path.lexists(old):
            old.rename(path)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _raise_named(error: OSError | InputError, partial: Path, path: Path) -> None:
    """Raises an error that names the output, where the disk takes no more or the temporary place is named."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        raise InputError(f"{path}: could not be written: {error.strerror}; nothing of it is left") from error
    if isinstance(error, InputError) and str(partial) in str(error):
        raise InputError(str(error).replace(str(partial), str(path))) from error


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
