"""What commands print: progress and notes on stderr, the result on stdout."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# Wider than any table: fitted to a narrow terminal, figures would be cut off.
_WIDTH = 1000


class Console:
    """One command's voice."""

    def __init__(self, quiet: bool, as_json: bool) -> None:
        self._quiet = quiet
        self._json = as_json

    def note(self, text: str) -> None:
        """Prints a line on stderr, unless quiet."""
        if not self._quiet:
            print(f"flexswitch: {text}", file=sys.stderr)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[str], None]]:
        """Says what is done; gives a function to call with each item's name, which moves a terminal's bar."""
        self.note(what)
        if self._quiet or not sys.stderr.isatty():
            yield lambda item: None
            return
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[item]}", style="dim"),
        )  # fmt: skip
        with Progress(*columns, console=RichConsole(stderr=True), transient=True) as bar:
            task = bar.add_task(what.split()[0], total=total, item="")
            yield lambda item: bar.update(task, advance=1, item=item)

    def result(self, document: dict[str, Any], *parts: Table | str) -> dict[str, Any]:
        """Prints the document with --json, else its tables and lines; returns the document."""
        if self._json:
            print(json.dumps(document, indent=1))
            return document
        rich = RichConsole(width=_WIDTH)
        for part in parts:
            rich.print(part, highlight=False, markup=False, soft_wrap=isinstance(part, str))
        return document


def table(title: str, *columns: str, left: int = 1) -> Table:
    """Returns an empty table whose first `left` columns are aligned left, the others right."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        made.add_column(column, justify="left" if position < left else "right", no_wrap=True)
    return made


def size(count: int) -> str:
    """Returns a number of bytes as people read it.

    >>> size(90_850_000)
    '90.85 MB'
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count} B"
