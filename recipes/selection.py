"""Chooses the steps of a run, and checks all of them before the first begins."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from flexswitch.codecs.errors import ExpectationError, InputError
from flexswitch.recipes.commands import check_arguments, get_command
from flexswitch.recipes.execute import Task, check_outputs
from flexswitch.recipes.graph import Graph, share_of, steps_named
from flexswitch.recipes.lock import (
    step_file,
)
from flexswitch.recipes.plan import PlannedStep
from flexswitch.recipes.prepared import Prepared
from flexswitch.recipes.state import why_not


@dataclass(frozen=True)
class Choice:
    """Which steps a run does. share: its number and the number of shares."""

    force: bool = False
    only: list[str] = field(default_factory=list)
    keep_going: bool = False
    frozen: bool = False
    share: tuple[int, int] | None = None


def select(prepared: Prepared, choice: Choice) -> dict[int, Task]:
    """Returns the tasks of a run, all checked before the first begins. Raises: FlexswitchError."""
    numbers = set(range(len(prepared.steps))) if choice.force else set(prepared.state.reasons)
    if choice.only:
        named = steps_named(prepared.graph.plan, choice.only)
        numbers &= named
        _check_only(prepared, numbers)
    if choice.share is not None:
        number, count = choice.share
        shares = share_of(prepared.graph, count)
        numbers = {each for each in numbers if shares[each] == number - 1}
    if choice.frozen:
        _check_frozen(prepared)
    made = {path for each in prepared.records.values() for path in each.writes.keys() - each.reads.keys()}
    tasks = {number: _task(prepared, number, choice.force, made) for number in sorted(numbers)}
    for number, task in tasks.items():
        with _named(prepared, task.step):
            _check_inputs(prepared, number)
            check_arguments(get_command(task.step.command), task.step.arguments)
            check_outputs(task.step, task.is_own)
    return tasks


def _task(prepared: Prepared, number: int, force: bool, made: set[str]) -> Task:
    """Returns the task of a step. made: the paths that steps of the recipe made, as the records say."""
    step, graph = prepared.steps[number], prepared.graph
    is_own = os.path.exists(step_file(step, prepared.lock_path)) or (
        all(path in made or not os.path.lexists(path) for path in step.writes)
        and (step.name in prepared.records or all(_is_made(graph, path) for path in step.changes))
    )
    pins = {path: prepared.pins[path] for path in step.reads if path in prepared.pins}
    redo = force or number in prepared.state.forced
    return Task(number, step, prepared.lock_path, pins, is_own, redo)


def _is_made(graph: Graph, path: str) -> bool:
    """Returns whether a step makes a path that others change."""
    return path in graph.plan.steps[graph.writers[path][0]].writes


def _check_inputs(prepared: Prepared, number: int) -> None:
    """Raises: InputError where a step reads something that neither exists nor is written by a step."""
    step, graph = prepared.steps[number], prepared.graph
    for path in (*step.reads, *step.changes):
        if path in graph.sources[number] or path in prepared.pins or os.path.exists(path):
            continue
        if not graph.partly[number]:
            raise InputError(f"{path}: no such file or folder, and no step writes it")


def _check_only(prepared: Prepared, numbers: set[int]) -> None:
    """Raises: InputError where a step of --only waits for another that is not done."""
    for number in numbers:
        waits = prepared.graph.before[number] & prepared.state.reasons.keys() - numbers
        if waits:
            first, step = prepared.steps[min(waits)].name, prepared.steps[number].name
            raise InputError(f"--only '{step}': waits for '{first}', which is not done; give that too")


def _check_frozen(prepared: Prepared) -> None:
    """Raises: ExpectationError where a step, or what it reads, is not as in the lock."""
    for number, step in enumerate(prepared.steps):
        record = prepared.lock.steps.get(step.name)
        reads: dict[str, str | None] = {}
        for path in (*step.reads, *step.changes):
            source = prepared.graph.sources[number].get(path)
            if source is not None or path in step.changes:
                reads[path] = record.reads.get(path) if record else None
            else:
                reads[path] = prepared.pins.get(path) or prepared.digests.of(path)
        if (reason := why_not(step, record, reads)) is not None:
            raise ExpectationError(f"--frozen: step '{step.name}' is not as in the lock: {reason}")


@contextmanager
def _named(prepared: Prepared, step: PlannedStep) -> Iterator[None]:
    try:
        yield
    except InputError as reason:
        raise InputError(f"{prepared.graph.plan.source}: step '{step.name}': {reason}") from reason
