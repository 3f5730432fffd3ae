"""Writes outputs to a temporary name and renames them, so that no output is ever seen half-written."""

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
    """Checks the path of an output before any work is done.

    Raises: InputError if the folder is missing, or if the output exists and must not be replaced.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; give another output, or --overwrite to replace it")


def check_space(path: Path, needed_bytes: int) -> None:
    """Raises: InputError if the disk of `path` has less than `needed_bytes` of free space."""
    free = shutil.disk_usage(path.parent).free
    if free < needed_bytes:
        raise InputError(
            f"{path}: the output needs {needed_bytes:,} bytes and the disk has {free:,} free; "
            "free some space or choose an output on another disk"
        )


@contextmanager
def atomic_file(path: Path, overwrite: bool) -> Iterator[Path]:
    """Yields a temporary path next to `path`; on exit the file is flushed to disk and renamed to `path`.

    On any exception the temporary file is removed and `path` is unchanged. Raises: InputError.
    """
    check_output(path, overwrite)
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a file; choose a file name")
    partial = _unused_name(path)
    try:  # from here on an interrupt removes it
        with _named_error(path):
            partial.touch(exist_ok=False)
        yield partial
        _flush(partial)
        partial.replace(path)
    except OSError as error:
        _raise_named(error, partial, path)
        raise
    finally:
        with suppress(OSError):  # it may have been renamed, or never created
            partial.unlink()


@contextmanager
def atomic_directory(path: Path, overwrite: bool, holds: str = "*") -> Iterator[Path]:
    """Yields a temporary folder next to `path`; on exit it is renamed to `path`.

    An existing folder is replaced only if it is empty or contains a file that matches `holds`: other folders
    were not written by the same command. On any exception the temporary folder is removed and `path` is
    unchanged. Raises: InputError.
    """
    check_output(path, overwrite)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file, expected a folder; choose a folder name")
    if path.is_dir() and any(path.iterdir()) and not any(path.glob(holds)):
        raise InputError(f"{path}: holds no {holds}, so --overwrite does not replace it; give another output")
    partial = _unused_name(path)
    try:  # from here on an interrupt removes it
        with _named_error(path):
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
    """Returns an unused hidden name next to `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


@contextmanager
def _named_error(path: Path) -> Iterator[None]:
    """Turns an error on creating the temporary file or folder into one that names the output."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def _swap(partial: Path, path: Path) -> None:
    """Renames `partial` to `path`; restores the old folder if that fails."""
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
    """Raises an error that names the output if the disk is full or the error has the temporary path."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        raise InputError(
            f"{path}: could not be written: {error.strerror}; the partial output was removed"
        ) from error
    if isinstance(error, InputError) and str(partial) in str(error):
        raise InputError(str(error).replace(str(partial), str(path))) from error


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
