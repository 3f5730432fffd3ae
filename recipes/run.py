"""Runs a recipe: what is done already stays, the rest is done once, and the lock says what came of it."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flexswitch.codecs.errors import ExitStatus, ExpectationError, FlexswitchError, InputError
from flexswitch.recipes.engine import Engine
from flexswitch.recipes.execute import Task
from flexswitch.recipes.expectations import check_expectations
from flexswitch.recipes.lock import (
    Lock,
    StepRecord,
    lock_file,
    read_step_file,
    step_file,
    write_lock,
)
from flexswitch.recipes.plan import PlannedStep
from flexswitch.recipes.prepared import Prepared
from flexswitch.recipes.schedule import Outcome, Room, Rules, Watcher, run_tasks
from flexswitch.recipes.selection import Choice
from flexswitch.recipes.state import why_not
from flexswitch.recipes.step_run import log_file, log_folder
from flexswitch.recipes.versions import differences


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
            try:
                _write_lock(prepared, outcome, bool(choice.only))
            except OSError as error:
                if not outcome.failures:
                    raise
                outcome.unwritten = f"{error.filename or prepared.lock_path}: {error.strerror or error}"
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
        left += f"; and the lock was not written: {outcome.unwritten}" if outcome.unwritten else ""
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
    from filelock import FileLock, Timeout

    name = "running" if share is None else f"running-{share[0]}-of-{share[1]}"
    folder = log_folder(lock_file(recipe))
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder}: is a link or no folder, and the steps' logs go there; move it away")
    folder.mkdir(exist_ok=True)
    try:
        with FileLock(folder / f"{name}.lock", timeout=0):
            yield
    except Timeout as reason:
        raise InputError(f"{recipe}: another run of it is going on; wait for its end") from reason


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
