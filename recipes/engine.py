"""Where steps run: an engine takes tasks and tells what becomes of them."""

from typing import Protocol

from flexswitch.recipes.digests import Digests
from flexswitch.recipes.execute import Task
from flexswitch.recipes.step_run import Event, open_log, run_step


class Engine(Protocol):
    """Runs tasks at once, as many as `slots`. counts_room: whether it knows itself what fits."""

    slots: int
    counts_room: bool

    def start(self, task: Task) -> None:
        """Begins a task; there is a slot for it."""

    def wait(self, seconds: float) -> list[Event]:
        """Returns what has happened, after at most this time."""

    def close(self) -> None:
        """Ends all that still runs."""


class ThisProcess:
    """Runs one task at a time in this process."""

    slots = 1
    counts_room = False

    def __init__(self, digests: Digests) -> None:
        self._digests = digests
        self._events: list[Event] = []

    def start(self, task: Task) -> None:
        """Runs a task."""
        with open_log(task) as log:
            self._events.append(run_step(task, self._digests, log, lambda event: None))

    def wait(self, seconds: float) -> list[Event]:
        """Returns the task's end."""
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Does nothing: nothing runs any more."""
