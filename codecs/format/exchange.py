"""Exchanges two names of a file system in one step, where the system can."""

import ctypes
import os
import sys
from pathlib import Path

_HERE = -100  # AT_FDCWD: paths are relative to the working directory
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS


def exchange(one: Path, other: Path) -> bool:
    """Returns whether the two names have been exchanged; if not, both are as they were.

    Source: the manual pages renameat2(2) of Linux and renamex_np(2) of macOS.
    """
    first, second = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return bool(library.renamex_np(first, second, _EXCHANGE) == 0)
        return bool(library.renameat2(_HERE, first, _HERE, second, _EXCHANGE) == 0)
    except (OSError, TypeError, AttributeError):  # a system without the library or the function
        return False
