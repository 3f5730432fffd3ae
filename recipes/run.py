"""Runs a recipe: what is done already stays, the rest is done once, and the lock says what came of it."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from flexswitch.codecs.errors import ExitStatus, ExpectationError, FlexswitchError, InputError
from flexswitch.recipes.commands import check_arguments, get_command
from flexswitch.recipes.digests import Digests
from flexswitch.recipes.engine import Engine
from flexswitch.recipes.execute import Task, check_outputs
from flexswitch.recipes.expectations import check_expectations
from flexswitch.recipes.graph import Graph, make_graph, share_of, steps_named
from flexswitch.recipes.lock import (
    Lock,
    StepRecord,
    lock_file,
    read_lock,
    read_step_file,
    step_file,
    write_lock,
)
from flexswitch.recipes.plan import PlannedStep, make_plan
from flexswitch.recipes.schedule import Outcome, Room, Rules, Watcher, run_tasks
from flexswitch.recipes.state import State, examine, why_not
from flexswitch.recipes.step_run import log_file, log_folder
from flexswitch.recipes.versions import differences, environment


@dataclass(frozen=True)
class Choice:
    """Which steps a run does. share: its number and the number of shares."""

    force: bool = False
    only: list[str] = field(default_factory=list)
    keep_going: bool = False
    frozen: bool = False
    share: tuple[int, int] | None = None


@dataclass(frozen=True)
class Prepared:
    """A recipe with what is known of its steps: their records, and why those are to run that are."""

    graph: Graph
    lock_path: Path
    lock: Lock
    records: Mapping[str, StepRecord]
    pins: Mapping[str, str]
    digests: Digests
    state: State

    @property
    def steps(self) -> list[PlannedStep]:
        """The steps in the recipe's order."""
        return self.graph.plan.steps


def prepare(recipe: Path, from_lock_alone: bool = False) -> Prepared:
    """Returns a recipe and the state of its steps. Raises: InputError."""
    graph, lock_path = make_graph(make_plan(recipe)), lock_file(recipe)
    lock, digests = read_lock(lock_path), Digests()
    records = dict(lock.steps)
    if not from_lock_alone:
        for step in graph.plan.steps:
            place = step_file(step, lock_path)
            if os.path.exists(place) and (found := read_step_file(place)) and found.record:
                records[step.name] = found.record
    pins = _pins(graph, lock)
    state = examine(graph, records, digests, pins)
    return Prepared(graph, lock_path, lock, records, pins, digests, state)


def check(prepared: Prepared) -> list[str]:
    """Returns what is not as the lock says, a line for each step; nothing where all is."""
    found = []
    for number, reason in prepared.state.reasons.items():
        step, record = prepared.steps[number], prepared.lock.steps.get(prepared.steps[number].name)
        line = f"'{step.name}': {reason}"
        if record is not None and reason.endswith("is not what it wrote"):
            line += f" ({differences(record.environment, environment(step))})"
        found.append(line)
    return found


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
    tasks = {number: _task(prepared, number, choice.force) for number in sorted(numbers)}
    for number, task in tasks.items():
        with _named(prepared, task.step):
            _check_inputs(prepared, number)
            check_arguments(get_command(task.step.command), task.step.arguments)
            check_outputs(task.step, task.is_own)
    return tasks


def run(
    prepared: Prepared,
    tasks: Mapping[int, Task],
    choice: Choice,
    engine: Engine,
    room: Room,
    watcher: Watcher,
) -> Outcome:  # fmt: skip
    """Runs tasks, and writes the lock at the end, however the run ends. Returns what became of them."""
    outcome = Outcome()
    rules = Rules(choice.keep_going, watcher, _finished(prepared, choice), _bytes_check(prepared, choice))
    try:
        run_tasks(prepared.graph, tasks, engine, room, rules, outcome)
    finally:
        engine.close()
        if choice.share is None and not choice.frozen:
            _write_lock(prepared, outcome, bool(choice.only))
    return outcome


def failure_of(prepared: Prepared, outcome: Outcome) -> FlexswitchError | None:
    """Returns the error of the first step that failed, naming its log; None where all are done.

    The expectations of steps that were done before are checked too.
    """
    source = prepared.graph.plan.source
    for number, failure in outcome.failures.items():
        others = len(outcome.failures) - 1
        more = f"; {others} other steps failed" if others else ""
        left = f"; {len(outcome.left)} steps were left out" if outcome.left else ""
        log = log_file(prepared.lock_path, number, prepared.steps[number].name)
        error = FlexswitchError(
            f"{source}: step '{prepared.steps[number].name}': {failure.message} (log: {log}){more}{left}"
        )
        error.status = ExitStatus(failure.status)
        return error
    for number, step in enumerate(prepared.steps):
        record = prepared.records.get(step.name)
        if number not in prepared.state.reasons and step.name not in outcome.records and record is not None:
            try:
                check_expectations(step, record.result)
            except FlexswitchError as error:
                return type(error)(f"{source}: step '{step.name}': {error}")
    return None


@contextmanager
def alone(recipe: Path, share: tuple[int, int] | None) -> Iterator[None]:
    """Keeps other runs of the recipe away. Raises: InputError where one is going on."""
    name = "running" if share is None else f"running-{share[0]}-of-{share[1]}"
    folder = log_folder(lock_file(recipe))
    folder.mkdir(exist_ok=True)
    try:
        with FileLock(folder / f"{name}.lock", timeout=0):
            yield
    except Timeout as reason:
        raise InputError(f"{recipe}: another run of it is going on; wait for its end") from reason


def _pins(graph: Graph, lock: Lock) -> dict[str, str]:
    """Returns the commits of the hub ids that steps read, as the lock has them, or else asked for now."""
    from flexswitch.merging.checkpoints.hub import is_hub_id, resolve_commit

    found = {}
    for step, sources in zip(graph.plan.steps, graph.sources, strict=True):
        for path in step.reads:
            if path in found or path in sources or not is_hub_id(path) or os.path.lexists(path):
                continue
            try:
                found[path] = lock.hub.get(path) or resolve_commit(path)
            except InputError as reason:
                raise InputError(
                    f"{graph.plan.source}: step '{step.name}': {path}: no such file or folder, and no step "
                    f"writes it; from the hub: {reason}"
                ) from reason
    return found


def _task(prepared: Prepared, number: int, force: bool) -> Task:
    step = prepared.steps[number]
    chain = [each for path in step.outputs for each in prepared.graph.writers[path]]
    is_own = any(prepared.steps[each].name in prepared.records for each in chain)
    is_own = is_own or os.path.exists(step_file(step, prepared.lock_path))
    is_own = is_own or any(each != number for each in chain)
    pins = {path: prepared.pins[path] for path in step.reads if path in prepared.pins}
    redo = force or number in prepared.state.forced
    return Task(number, step, prepared.lock_path, pins, is_own, redo)


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


def _finished(prepared: Prepared, choice: Choice) -> Callable[[int, Outcome], StepRecord | None]:
    """Returns a function that finds steps whose inputs turned out to be the same as before."""

    def finished(number: int, outcome: Outcome) -> StepRecord | None:
        step = prepared.steps[number]
        record = prepared.records.get(step.name)
        if record is None or choice.force or number in prepared.state.forced:
            return None
        reads: dict[str, str | None] = {}
        for path in (*step.reads, *step.changes):
            source = prepared.graph.sources[number].get(path)
            if source is None:
                reads[path] = prepared.pins.get(path) or prepared.digests.of(path)
            else:
                name = prepared.steps[source].name
                made = outcome.records.get(name) or prepared.records.get(name)
                reads[path] = made.writes.get(path) if made else None
        if why_not(step, record, reads) is not None:
            return None
        same = all(prepared.digests.of(path) == record.writes.get(path) for path in step.outputs)
        return record if same else None

    return finished


def _bytes_check(prepared: Prepared, choice: Choice) -> Callable[[PlannedStep, StepRecord], None]:
    """Returns a function that compares a step's outputs with the lock where that is frozen."""

    def compare(step: PlannedStep, record: StepRecord) -> None:
        locked = prepared.lock.steps.get(step.name)
        if not choice.frozen or locked is None:
            return
        for path in step.outputs:
            if record.writes.get(path) != locked.writes.get(path):
                versions = differences(locked.environment, record.environment)
                raise ExpectationError(f"{path}: has other bytes than in the lock ({versions})")

    return compare


def _write_lock(prepared: Prepared, outcome: Outcome, partial: bool) -> None:
    """Writes the lock, and removes the steps' own files that it makes needless."""
    names = {step.name for step in prepared.steps}
    kept = {name: record for name, record in prepared.lock.steps.items() if partial or name in names}
    found = {name: record for name, record in prepared.records.items() if name in names}
    steps = kept | found | outcome.records
    hub = {path: prepared.pins[path] for path in sorted(prepared.pins)}
    write_lock(prepared.lock_path, Lock(hub=hub, steps=steps))
    for step in prepared.steps:
        place = step_file(step, prepared.lock_path)
        if step.name in steps and os.path.exists(place):
            content = read_step_file(place)
            if content is not None and content.record == steps[step.name]:
                place.unlink(missing_ok=True)
        lock = f"{place}.lock"
        if os.path.exists(lock):
            os.unlink(lock)


@contextmanager
def _named(prepared: Prepared, step: PlannedStep) -> Iterator[None]:
    try:
        yield
    except InputError as reason:
        raise InputError(f"{prepared.graph.plan.source}: step '{step.name}': {reason}") from reason
