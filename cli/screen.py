"""What a stream is, a terminal of some width or a file, and text that fits it."""

import os
import re
import sys
from typing import TextIO

from rich.cells import cell_len

from flexswitch.cli.printable import one_line

ACCENT, BOLD, DIM, RED, YELLOW = "36", "1", "2", "1;31", "1;33"
_IN_A_LOG = 160  # columns of a table in a file or pipe
_TYPICAL = 80  # columns of a terminal that does not say
_NARROWEST = 40


def is_terminal(stream: TextIO) -> bool:
    """Returns whether a stream is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def columns_of(stream: TextIO) -> int:
    """Returns the columns that a table may take: those of `COLUMNS`, of the terminal, or of a log."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return max(_NARROWEST, int(given))
    if not stream.isatty():
        return _IN_A_LOG
    try:
        found = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # a stream of no file
        found = 0
    return max(_NARROWEST, found or _TYPICAL)


def styled(text: str, style: str, stream: TextIO) -> str:
    """Returns a text in a style, as it is where the stream shows none or `NO_COLOR` is set."""
    if not text or not is_terminal(stream) or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{style}m{text}\x1b[0m"


def fitted(text: str, stream: TextIO) -> list[str]:
    """Returns a line as it is shown: on a terminal in lines that end between words, elsewhere whole.

    A command line, which begins with `$`, stays whole, so that it can be copied.
    """
    if not stream.isatty() or text.lstrip().removeprefix("flexswitch: ").startswith("$ "):
        return [text]
    return wrapped(text, columns_of(stream), "  ")


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Returns lines of at most `width` columns that end between words; those after the first are indented.

    A word that is longer than a line stands whole in a line of its own.

    >>> wrapped("the model's own --target-size", 20)
    ["the model's own", '--target-size']
    """
    lines, line = [], ""
    for gap, word in re.findall(r"(\s*)(\S+)", text):
        if line.strip() and cell_len(line + gap + word) > width:
            lines.append(line)
            line = indent + word
        else:
            line += gap + word
    return [*lines, line]


def tell(text: str) -> None:
    """Prints a line on stderr: a note, or what begins with `error: ` or `warning: `, which stand out."""
    label, between, _ = text.partition(": ")
    styles = {"error": RED, "warning": YELLOW}
    lines = fitted(f"flexswitch: {one_line(text)}", sys.stderr)
    if between and label in styles:
        lines[0] = lines[0].replace(f"{label}:", styled(f"{label}:", styles[label], sys.stderr), 1)
    print("\n".join(lines), file=sys.stderr)
