"""Digests of what steps read and write: SHA-256 of contents, never times.

The hash of a file is remembered in the user's cache by the file's identity (device, inode, size and times),
so that an unchanged file is not read again. A cache that cannot be used is ignored.
"""

import hashlib
import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

# A file that changes again within a tick of the file system's clock keeps its times.
_SETTLED_NANOSECONDS = 2_000_000_000


class Digests:
    """Computes digests of paths, and remembers the hashes of files."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._database = _opened(_cache_file())

    def of(self, path: str) -> str | None:
        """Returns the digest of a file or folder; None where nothing is.

        A folder's covers the names and contents of all files below it, without those whose name begins with
        a dot and those in folders of such names.
        """
        if os.path.isfile(path):
            return self._file(path)
        if not os.path.isdir(path):
            return None
        total = hashlib.sha256()
        for name in _files_below(path):
            total.update(f"{name}\0{self._file(os.path.join(path, name))}\n".encode())
        return total.hexdigest()

    def _file(self, path: str) -> str:
        now, stat = time.time_ns(), os.stat(path)
        identity = f"{stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        settled = max(stat.st_mtime_ns, stat.st_ctime_ns) < now - _SETTLED_NANOSECONDS
        found = self._known.get(identity) or (self._remembered(identity) if settled else None)
        if found is None:
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if settled:
                self._remember(identity, found)
        if settled:
            self._known[identity] = found
        return found

    def _remembered(self, identity: str) -> str | None:
        if self._database is not None:
            with suppress(sqlite3.Error):
                rows = self._database.execute("SELECT digest FROM files WHERE identity = ?", (identity,))
                return next((digest for (digest,) in rows), None)
        return None

    def _remember(self, identity: str, digest: str) -> None:
        if self._database is not None:
            with suppress(sqlite3.Error), self._database:
                self._database.execute("INSERT OR REPLACE INTO files VALUES (?, ?)", (identity, digest))


def _opened(path: Path | None) -> sqlite3.Connection | None:
    if path is None:
        return None
    with suppress(sqlite3.Error, OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=5)
        database.execute("PRAGMA synchronous = OFF")
        database.execute("CREATE TABLE IF NOT EXISTS files (identity TEXT PRIMARY KEY, digest TEXT)")
        return database
    return None


def _cache_file() -> Path | None:
    given, cache = os.environ.get("FLEXSWITCH_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given) / "files.sqlite"
    with suppress(RuntimeError):  # the user has no home
        return (Path(cache) if cache else Path.home() / ".cache") / "flexswitch" / "files.sqlite"
    return None


def _files_below(folder: str) -> list[str]:
    """Returns the paths of the files below a folder, relative to it, sorted."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(place, folder)
        found += [os.path.normpath(os.path.join(below, name)) for name in files if not name.startswith(".")]
    return sorted(found)
