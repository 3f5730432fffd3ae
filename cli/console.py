"""What commands print: progress and notes on stderr, the result on stdout."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.filesize import decimal
from rich.table import Table

from flexswitch.cli.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress

# Wider than any table: fitted to a narrow terminal, figures would be cut off.
_WIDTH = 1000
_STEPS_A_LINE = 50


class Console:
    """Prints what one command reports."""

    def __init__(self, quiet: bool, as_json: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.quiet = quiet
        self.as_json = as_json
        self._live: Progress | None = None

    def note(self, text: str) -> None:
        """Prints a line on stderr, unless quiet."""
        if not self.quiet:
            print(f"flexswitch: {printable(text)}", file=sys.stderr)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[str], None]]:
        """Notes what begins; yields a function to call with each item's name, which moves the bar."""
        self.note(what)
        with self._bars() as bars:
            if bars is None:
                yield lambda item: None
                return
            bar = bars.add_task(what.split()[0], total=total, item="")
            yield lambda item: bars.update(bar, advance=1, item=printable(item))

    @contextmanager
    def steps(self, what: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """Yields a function to call after each step, with the number of steps done and their state.

        It moves the bar on a terminal, and otherwise notes every 50th step with the time left. The first step
        may be any: an interrupted run continues.
        """
        time_left = _TimeLeft(total, self._clock)
        with self._bars() as bars:
            bar = (
                None if bars is None else bars.add_task(printable(what), total=total, item="", visible=False)
            )

            def stepped(done: int, state: str) -> None:
                left = time_left.left(done)
                if bars is None or bar is None:
                    if done % _STEPS_A_LINE == 0 or done == total:
                        ending = "" if left is None or done == total else f", {duration(left)} left"
                        self.note(f"step {done} of {total}: {state}{ending}")
                elif time_left.first == done:
                    bars.reset(bar, completed=done, item=printable(state), visible=True)
                else:
                    bars.update(bar, completed=done, item=printable(state))

            yield stepped

    @contextmanager
    def _bars(self) -> Iterator["Progress | None"]:
        """Yields the bars of a terminal, or None without one; a bar inside another is drawn below it."""
        if self.quiet or not sys.stderr.isatty() or self._live is not None:
            yield self._live
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[item]}", style="dim", markup=False),
        )  # fmt: skip
        with Progress(*columns, console=RichConsole(stderr=True), transient=True) as bars:
            self._live = bars
            try:
                yield bars
            finally:
                self._live = None

    def result(self, document: dict[str, Any], *parts: Table | str) -> dict[str, Any]:
        """Prints the document with --json, and otherwise the tables and lines; returns the document."""
        if self.as_json:
            print(json.dumps(document, indent=1))
            return document
        rich = RichConsole(width=_WIDTH, markup=False, emoji=False, highlight=False)
        for part in parts:
            if isinstance(part, str):
                rich.print(printable(part), soft_wrap=True)
            else:
                wraps = sys.stdout.isatty() and not all(column.no_wrap for column in part.columns)
                rich.print(part, width=shutil.get_terminal_size().columns if wraps else None)
        return document


class _TimeLeft:
    """Estimates how long the remaining steps take, from the steps that were reported."""

    def __init__(self, total: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.first: int | None = None
        self._total = total
        self._began = 0.0

    def left(self, done: int) -> float | None:
        """Returns seconds; None after the first step, because nobody knows when that began."""
        now = self._clock()
        if self.first is None:
            self.first, self._began = done, now
            return None
        return (now - self._began) / max(1, done - self.first) * (self._total - done)


class _PrintableTable(Table):
    """A table whose cells are printable."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Adds a row of texts."""
        super().add_row(*map(printable, cells), **options)


def table(title: str, *columns: str, left: int = 1) -> Table:
    """Returns an empty table whose first `left` columns are aligned left, the others right."""
    made = _PrintableTable(
        title=printable(title), title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for position, column in enumerate(columns):
        made.add_column(printable(column), justify="left" if position < left else "right", no_wrap=True)
    return made


def size(count: int) -> str:
    """Returns a number of bytes in decimal units.

    >>> size(90_850_000)
    '90.85 MB'
    """
    return decimal(count, precision=2)


def duration(seconds: float) -> str:
    """Returns a time in its two largest units.

    >>> duration(80), duration(7.4), duration(2 * 3600 + 59)
    ('1 min 20 s', '7 s', '2 h 0 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
