"""How `flexswitch run` shows its progress: a table of the running steps, or a line for each event."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flexswitch.cli.console import Console, duration
from flexswitch.cli.printable import printable
from flexswitch.cli.screen import is_terminal

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from flexswitch.recipes.execute import Task
    from flexswitch.recipes.prepared import Prepared
    from flexswitch.recipes.step_run import Event


class Lines:
    """Notes a line for each event."""

    def __init__(self, console: Console, tasks: "Mapping[int, Task]") -> None:
        self._console, self._tasks = console, tasks
        self._order = {number: place for place, number in enumerate(tasks, 1)}
        self.done = 0

    def started(self, number: int) -> None:
        """Notes a step and its command line."""
        self._console.note(f"{self._called(number)}")
        self._console.note(f"$ {self._tasks[number].step.line}")

    def told(self, number: int, text: str) -> None:
        """Notes nothing: progress is for terminals."""

    def ended(self, event: "Event") -> None:
        """Notes how a step ended."""
        from flexswitch.recipes.step_run import Failure

        called = self._called(event.number)
        if isinstance(event.news, Failure):
            self._console.note(f"{called}: failed: {event.news.message}")
            return
        self.done += 1
        if event.seconds:
            self._console.note(f"{called}: done in {duration(event.seconds)}")

    def _called(self, number: int) -> str:
        place, count = self._order[number], len(self._tasks)
        return f"step {place} of {count}: {self._tasks[number].step.name}"


class Table(Lines):
    """Shows the running steps below a bar of all."""

    def __init__(self, console: Console, tasks: "Mapping[int, Task]", bars: "Progress") -> None:
        super().__init__(console, tasks)
        self._bars = bars
        self._all = bars.add_task("steps", total=len(tasks), item="")
        self._running: dict[int, TaskID] = {}
        self._failed = 0

    def started(self, number: int) -> None:
        """Adds a step to the table."""
        name = printable(self._tasks[number].step.name)
        self._running[number] = self._bars.add_task(f"  {name}", total=None, item="")
        self._show()

    def told(self, number: int, text: str) -> None:
        """Shows how far a step has come."""
        self._bars.update(self._running[number], item=printable(text))

    def ended(self, event: "Event") -> None:
        """Removes a step from the table, and notes a failure above it."""
        from flexswitch.recipes.step_run import Failure

        if (row := self._running.pop(event.number, None)) is not None:
            self._bars.remove_task(row)
        if isinstance(event.news, Failure):
            self._failed += 1
            super().ended(event)
        else:
            self.done += 1
        self._bars.update(self._all, advance=1)
        self._show()

    def _show(self) -> None:
        waiting = len(self._tasks) - self.done - self._failed - len(self._running)
        counts = f"{len(self._running)} running, {waiting} waiting"
        self._bars.update(self._all, item=counts + (f", {self._failed} failed" if self._failed else ""))


@contextmanager
def watch(console: Console, prepared: "Prepared", tasks: "Mapping[int, Task]") -> Iterator[Lines]:
    """Yields what shows the progress of a run."""
    if console.quiet or not is_terminal(sys.stderr) or not tasks:
        yield Lines(console, tasks)
        return
    from flexswitch.cli.bars import make_bars

    with make_bars() as bars:
        yield Table(console, tasks, bars)
