"""Runs the steps of a plan in their order, as many at once as the machine has room for."""

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from flexswitch.codecs.errors import ExitStatus, FlexswitchError
from flexswitch.recipes.engine import Engine
from flexswitch.recipes.execute import Done, Task
from flexswitch.recipes.expectations import check_expectations
from flexswitch.recipes.graph import Graph
from flexswitch.recipes.lock import StepRecord
from flexswitch.recipes.plan import PlannedStep
from flexswitch.recipes.recipe import Needs
from flexswitch.recipes.step_run import Event, Failure


class Watcher(Protocol):
    """Is told what happens to the steps."""

    def started(self, number: int) -> None:
        """A step has begun."""

    def told(self, number: int, text: str) -> None:
        """A step has come this far."""

    def ended(self, event: Event) -> None:
        """A step is done or has failed."""


@dataclass
class Room:
    """What of the machine is free."""

    cpus: int
    gpus: int
    memory: int

    def take(self, needs: Needs, sign: int) -> None:
        """Takes what a step needs, or with sign -1 gives it back."""
        self.cpus -= sign * (needs.cpus or 0)
        self.gpus -= sign * (needs.gpus or 0)
        self.memory -= sign * needs.memory_bytes

    def holds(self, needs: Needs) -> bool:
        """Returns whether a step's needs are free."""
        return (
            self.cpus >= (needs.cpus or 0)
            and self.gpus >= (needs.gpus or 0)
            and self.memory >= needs.memory_bytes
        )


@dataclass
class Outcome:
    """What became of the steps.

    failures: in the order in which they happened; unwritten: why the lock could not be written after them.
    """

    records: dict[str, StepRecord] = field(default_factory=dict)
    was_done: set[int] = field(default_factory=set)
    failures: dict[int, Failure] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    left: set[int] = field(default_factory=set)
    unwritten: str | None = None


@dataclass(frozen=True)
class Rules:
    """How a run goes on.

    finished: returns the record of a step that need not run after all; check: raises ExpectationError where
    a step's record is not the one expected.
    """

    keep_going: bool
    watcher: Watcher
    finished: Callable[[int, Outcome], StepRecord | None]
    check: Callable[[PlannedStep, StepRecord], None]


def run_tasks(
    graph: Graph, tasks: Mapping[int, Task], engine: Engine, room: Room, rules: Rules, outcome: Outcome
) -> None:
    """Runs tasks and notes what becomes of them. A step whose needs are never free runs alone."""
    outcome.left = set(tasks)
    waits = {number: len(graph.before[number] & tasks.keys()) for number in tasks}
    ready = [(-graph.urgency[number], number) for number, count in waits.items() if not count]
    heapq.heapify(ready)
    running: dict[int, Needs] = {}
    while running or (ready and (rules.keep_going or not outcome.failures)):
        events = []
        goes_on = rules.keep_going or not outcome.failures
        for number in _startable(ready, tasks, running, engine, room, goes_on):
            running[number] = tasks[number].step.needs
            if (record := rules.finished(number, outcome)) is not None:
                events.append(Event(number, Done(record, was_done=True)))
                continue
            rules.watcher.started(number)
            engine.start(tasks[number])
        for event in events or engine.wait(1.0):
            if isinstance(event.news, str):
                rules.watcher.told(event.number, event.news)
                continue
            room.take(running.pop(event.number), -1)
            rules.watcher.ended(_noted(outcome, event, tasks[event.number], rules))
            if event.number in outcome.failures:
                continue
            for number in graph.after[event.number] & tasks.keys():
                waits[number] -= 1
                if not waits[number]:
                    heapq.heappush(ready, (-graph.urgency[number], number))


def _startable(
    ready: list[tuple[int, int]],
    tasks: Mapping[int, Task],
    running: Mapping[int, Needs],
    engine: Engine,
    room: Room,
    goes_on: bool,
) -> list[int]:
    """Takes from the steps that are ready those to start now, the most urgent first."""
    found: list[int] = []
    passed: list[tuple[int, int]] = []
    while goes_on and ready and len(running) + len(found) < engine.slots:
        entry = heapq.heappop(ready)
        needs = tasks[entry[1]].step.needs
        if room.holds(needs) or not (running or found):
            room.take(needs, 1)
            found.append(entry[1])
        else:
            passed.append(entry)
    for entry in passed:
        heapq.heappush(ready, entry)
    return found


def _noted(outcome: Outcome, event: Event, task: Task, rules: Rules) -> Event:
    """Notes the end of a step; returns it, as a failure where its figures or bytes are not as expected."""
    outcome.left.discard(event.number)
    outcome.seconds[event.number] = event.seconds
    if isinstance(event.news, Done):
        outcome.records[task.step.name] = event.news.record
        if event.news.was_done:
            outcome.was_done.add(event.number)
        try:
            check_expectations(task.step, event.news.record.result)
            rules.check(task.step, event.news.record)
        except FlexswitchError as error:
            event = Event(event.number, Failure(str(error), int(error.status)), event.seconds)
    if isinstance(event.news, Failure):
        outcome.failures[event.number] = event.news
    return event


def status_of(outcome: Outcome) -> int:
    """Returns the exit status: that of the first failure."""
    return next((each.status for each in outcome.failures.values()), int(ExitStatus.DONE))
