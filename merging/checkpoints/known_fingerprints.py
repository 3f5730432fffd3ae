"""Remembers in the user's cache the fingerprints of files that have not changed since they were hashed.

One small file for each base, named by a hash of what tells that the base's files are the same: device, inode,
size and times. A cache that cannot be read or written, or holds anything else, is ignored.
"""

import os
import re
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

MOST_REMEMBERED = 1000
# A file that changes again within one tick of the file system's clock keeps its times.
SETTLED_SECONDS = 2.0
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_known: dict[str, str] = {}  # what this process has hashed or looked up


@dataclass(frozen=True)
class FileStamps:
    """What tells that files are the same as before. is_settled: whether any change would show in `key`."""

    key: str
    is_settled: bool


def file_stamps(files: Iterable[Path]) -> FileStamps:
    """Returns the stamps of files; they are to be taken before the files are read."""
    now, stats = time.time_ns(), [file.stat() for file in files]
    fields = [(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats]
    latest = max((max(stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats), default=now)
    settled = latest < now - int(SETTLED_SECONDS * 1e9)
    return FileStamps(blake3(f"fingerprint 1 {fields}".encode()).hexdigest(), settled)


def known_fingerprint(stamps: FileStamps) -> str | None:
    """Returns the fingerprint of files with these stamps, None if it is not known."""
    if stamps.key not in _known and stamps.is_settled:
        with suppress(OSError, RuntimeError):
            found = _read(_folder() / stamps.key)
            if _FINGERPRINT.fullmatch(found):
                _known[stamps.key] = found
    return _known.get(stamps.key)


def remember_fingerprint(stamps: FileStamps, fingerprint: str) -> None:
    """Remembers the fingerprint of files, unless they are so new that a change might not show."""
    if not stamps.is_settled:
        return
    _known[stamps.key] = fingerprint
    with suppress(OSError, RuntimeError):
        folder = _folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = folder / f"{secrets.token_hex(8)}.partial"
        try:
            partial.write_text(fingerprint)
            partial.replace(folder / stamps.key)
        finally:
            partial.unlink(missing_ok=True)
        _remove_oldest(folder)


def _folder() -> Path:
    """Returns where fingerprints are kept. Raises: RuntimeError if the user has no home."""
    given = os.environ.get("FLEXSWITCH_CACHE")
    cache = os.environ.get("XDG_CACHE_HOME")
    root = Path(given) if given else (Path(cache) if cache else Path.home() / ".cache") / "flexswitch"
    return root / "bases"


def _read(file: Path) -> str:
    """Returns the first characters of a file that belongs to this user; never waits for a pipe."""
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        is_own = not hasattr(os, "getuid") or os.fstat(descriptor).st_uid == os.getuid()
        return os.read(descriptor, 65).decode("ascii", "replace") if is_own else ""
    finally:
        os.close(descriptor)


def _remove_oldest(folder: Path) -> None:
    files = [file for file in folder.iterdir() if _FINGERPRINT.fullmatch(file.name)]
    if len(files) > MOST_REMEMBERED:
        files.sort(key=lambda file: file.lstat().st_mtime_ns)
        for file in files[: len(files) - MOST_REMEMBERED]:
            file.unlink(missing_ok=True)
