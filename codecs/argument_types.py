"""Checks of the types of arguments, for functions that anyone may call with anything."""

import math
from pathlib import Path

from flexswitch.codecs.errors import UsageError

PATH = "a path as a text or a pathlib.Path"
NUMBER = "a finite number"
_LONGEST = 60  # characters of a text in a message


def check_argument(function: str, name: str, value: object, fits: bool, expected: str) -> None:
    """Raises: UsageError that names the function and the argument, unless the value fits."""
    if not fits:
        raise UsageError(f"{function}: {name} is {_described(value)}, expected {expected}")


def is_path(value: object) -> bool:
    """Returns whether a value is the path of a file or folder."""
    return isinstance(value, (str, Path)) and "\0" not in str(value)


def is_number(value: object) -> bool:
    """Returns whether a value is a finite number; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _described(value: object) -> str:
    if value is None or isinstance(value, (bool, int, float, str)):
        text = repr(value)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return f"of the type {type(value).__name__}"
