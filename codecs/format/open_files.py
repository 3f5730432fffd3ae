"""The number of files that this process may hold open."""

import sys
from contextlib import suppress

_MACOS = 10_240  # macOS sets no limit, but allows a process no more
_SPARE = 512  # files that are open besides those that are counted, in libraries and in weights


def allow_open_files(count: int) -> None:
    """Raises the process's limit of open files where it leaves few beside `count`, as far as allowed."""
    if sys.platform == "win32":
        return
    import resource

    current, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if current == resource.RLIM_INFINITY or current >= count + _SPARE:
        return
    wanted = _MACOS if most == resource.RLIM_INFINITY else most
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
