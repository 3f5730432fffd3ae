"""Makes text safe to print: names in files may hold escape sequences or bidirectional controls."""

import logging
import warnings
from typing import Any

_LONGEST = 10_000  # characters of a message


def printable(text: str) -> str:
    r"""Returns a text on one line, with an escape such as `\x1b` for each character that is not visible.

    >>> printable("a\x1b[31m\n\u202eb \ud800 é")
    'a\\x1b[31m\\n\\u202eb \\ud800 é'
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text
    )


def one_line(text: str) -> str:
    """Returns the lines of a message joined by spaces, printable; a very long one without its middle."""
    shown = printable(" ".join(text.split("\n")))
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 2000]} … {shown[-2000:]}"


def make_libraries_printable() -> None:
    """Makes the log messages and warnings of all libraries printable too; they quote names from files."""
    create = logging.LogRecord

    def record(*arguments: Any, **named: Any) -> logging.LogRecord:
        made = create(*arguments, **named)
        made.msg, made.args = one_line(made.getMessage()), ()
        return made

    def warning(message: Warning | str, *_: Any, **__: Any) -> str:
        return f"flexswitch: warning: {one_line(str(message))}\n"

    logging.setLogRecordFactory(record)
    warnings.formatwarning = warning
