"""Makes outputs in a hidden folder and moves them into place, so that none is ever seen half-written."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.exchange import exchange
from flexswitch.codecs.format.working_folder import set_aside, working_folder


def check_output(path: Path, overwrite: bool) -> None:
    """Checks the path of an output before any work is done.

    Raises: InputError if it has no name of its own, the folder is missing, or the output is a link, or exists
    and must not be replaced.
    """
    if path.name in ("", ".."):
        raise InputError(f"{path}: is no name of an output; give the name of a file or folder")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.is_symlink():
        raise InputError(
            f"{path}: is a link, and flexswitch writes nothing through links; give another output, or the "
            "path that it leads to"
        )
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
    """Yields a path in a hidden folder next to `path`; on exit its file is flushed and moved to `path`.

    Without overwrite it replaces no file that is made meanwhile. On any exception nothing is left of it and
    `path` is unchanged. Raises: InputError.
    """
    check_output(path, overwrite)
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a file; choose a file name")
    with working_folder(path) as folder:
        partial = folder / path.name
        with named_errors(partial, path):
            partial.touch()
            yield partial
            flush(partial)
            if overwrite:
                partial.replace(path)
            else:
                _take_name(partial, path)
            flush(path.parent)


@contextmanager
def atomic_directory(
    path: Path,
    overwrite: bool,
    refusal: Callable[[Path], str | None] = lambda path: None,
    exchange: Callable[[Path, Path], bool] = exchange,
) -> Iterator[Path]:
    """Yields an empty folder in a hidden one next to `path`; on exit it is flushed and renamed to `path`.

    refusal: returns why a folder that is not empty must not be replaced, None if it may. exchange: exchanges
    two folders in one step and returns whether it could. On any exception nothing is left of the new folder
    and `path` is unchanged. Raises: InputError.
    """
    check_output(path, overwrite)
    _check_folder(path, refusal)
    with working_folder(path) as folder:
        partial = folder / path.name
        with named_errors(partial, path):
            partial.mkdir()
            yield partial
            for place in [*partial.rglob("*"), partial]:
                flush(place)
            if overwrite and os.path.lexists(path):
                check_output(path, overwrite)
                _check_folder(path, refusal)  # again, since files may have been put into it meanwhile
                if not exchange(partial, path):
                    set_aside(path, folder)
                    partial.rename(path)
            else:
                _take_place(partial, path)
            flush(path.parent)


def flush(path: Path) -> None:
    """Writes a file, or the names in a folder, to the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # Windows opens no folders
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that flushes no folders
            raise
    finally:
        os.close(descriptor)


def _check_folder(path: Path, refusal: Callable[[Path], str | None]) -> None:
    """Raises: InputError if an output is a file, or a folder that must not be replaced."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file, expected a folder; choose a folder name")
    reason = refusal(path) if path.is_dir() and any(path.iterdir()) else None
    if reason is not None:
        raise InputError(f"{path}: {reason}, so --overwrite does not replace it; give another output")


def _take_name(partial: Path, path: Path) -> None:
    """Gives a file a name that was free. Raises: InputError if it has been taken meanwhile."""
    try:
        os.link(partial, path)
    except OSError as error:
        if os.path.lexists(path):
            raise _made_meanwhile(path) from error
        partial.rename(path)  # a file system without hard links


def _take_place(partial: Path, path: Path) -> None:
    """Renames a folder to a name that was free. Raises: InputError if it has been taken meanwhile."""
    try:
        partial.rename(path)
    except OSError as error:
        if not os.path.lexists(path):
            raise
        raise _made_meanwhile(path) from error


def _made_meanwhile(path: Path) -> InputError:
    return InputError(
        f"{path}: another process has made it meanwhile; give another output, or --overwrite to replace it"
    )


@contextmanager
def named_errors(partial: Path, path: Path) -> Iterator[None]:
    """Turns the error of a full disk, and errors with the temporary path, into ones that name the output."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise InputError(
                f"{path}: could not be written: {error.strerror}; the partial output was removed"
            ) from error
        raise
    except InputError as error:
        if str(partial) not in str(error):
            raise
        raise InputError(str(error).replace(str(partial), str(path))) from error
