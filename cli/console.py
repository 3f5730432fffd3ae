"""What commands print: progress and notes on stderr, the result on stdout."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from flexswitch.cli.printable import printable
from flexswitch.cli.screen import BOLD, DIM, columns_of, fitted, is_terminal, styled, tell
from flexswitch.cli.table import Column, Table

if TYPE_CHECKING:
    from rich.progress import Progress

_STEPS_A_LINE = 50
_MOST_LINES = 20  # of the steps of a training
_STYLES = {"title": BOLD, "header": BOLD, "rule": DIM}  # of a table's lines


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
            tell(text)

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

        It moves the bar on a terminal, and otherwise notes every 50th step, or fewer, so that there are at
        most 20, with the time left. The first step may be any: an interrupted run continues.
        """
        time_left, noted = _TimeLeft(total, self._clock), max(_STEPS_A_LINE, total // _MOST_LINES)
        with self._bars() as bars:
            bar = (
                None if bars is None else bars.add_task(printable(what), total=total, item="", visible=False)
            )

            def stepped(done: int, state: str) -> None:
                left = time_left.left(done)
                if bars is None or bar is None:
                    if done % noted == 0 or done == total:
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
        if self.quiet or not is_terminal(sys.stderr) or self._live is not None:
            yield self._live
            return
        from flexswitch.cli.bars import make_bars

        with make_bars() as bars:
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
        for part in parts:
            lines = fitted(printable(part), sys.stdout) if isinstance(part, str) else _drawn(part)
            print("\n".join(lines))
        return document


def _drawn(drawn: Table) -> Iterator[str]:
    """Yields the lines of a table as they are shown on stdout."""
    for line in drawn.lines(columns_of(sys.stdout), folds=sys.stdout.isatty()):
        yield styled(line.text, _STYLES[line.kind], sys.stdout) if line.kind in _STYLES else line.text


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


def table(title: str, *columns: str, left: int = 1, prose: tuple[str, ...] = ()) -> Table:
    """Returns an empty table whose first `left` columns are aligned left, the others right.

    prose: the columns whose texts are sentences, or lists of names; they fold in a log too.
    """
    return Table(
        title, [Column(printable(name), number < left, name in prose) for number, name in enumerate(columns)]
    )


def percent(share: float, digits: int = 1) -> str:
    """Returns a share in %.

    >>> percent(0.1204, 2)
    '12.04 %'
    """
    return f"{100 * share:.{digits}f} %"


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
    if 0 < seconds < 0.5:
        return "under 1 s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
