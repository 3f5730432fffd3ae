"""Runs one step, once: its outputs, and beside them a file with its record."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.working_folder import remove_abandoned
from flexswitch.merging.commands.reporter import Reporter
from flexswitch.recipes.commands import get_command, unused_options
from flexswitch.recipes.digests import Digests
from flexswitch.recipes.lock import (
    StepFile,
    StepRecord,
    read_step_file,
    recorded_figures,
    step_file,
    write_step_file,
)
from flexswitch.recipes.plan import PlannedStep
from flexswitch.recipes.state import why_not
from flexswitch.recipes.versions import algorithm_versions, environment, runs_model

_EVERY = 50  # training steps between two states on disk
_SIDE_FILES = (".resume", ".training", ".tries")


@dataclass(frozen=True)
class Task:
    """A step to run. Everything in it can be sent to another process.

    pins: hub id → commit. is_own: whether the step's outputs may be replaced, because the recipe wrote them.
    threads: how many the step may use; None for all.
    """

    number: int
    step: PlannedStep
    lock: Path
    pins: Mapping[str, str]
    is_own: bool
    redo: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class Done:
    """A finished step: its record, and whether it had been finished before."""

    record: StepRecord
    was_done: bool = False


def execute(task: Task, reporter: Reporter, digests: Digests) -> Done:
    """Runs a step and returns its record. Raises: FlexswitchError, and InputError if an input changes.

    Two processes never run the same step at once, and the second finds it done.
    """
    from filelock import FileLock

    place = step_file(task.step, task.lock)
    for output in task.step.outputs:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        before = read_step_file(place)
        reads = _reads(task, digests)
        if not task.redo and (record := _finished(task.step, before, reads, digests)) is not None:
            return Done(record, was_done=True)
        is_own = task.is_own or before is not None
        check_outputs(task.step, is_own)
        started = StepFile(command=task.step.line, reads=reads, stamps=_stamps(task.step))
        _clear(task.step, before, started)
        write_step_file(place, started)
        command = get_command(task.step.command)
        made = command.call(**_arguments(task, is_own), reporter=reporter)
        record = _record(task, reads, recorded_figures(command.result_of(made)), digests)
        if _stamps(task.step) != started.stamps:
            raise InputError("an input changed while the step read it; run the recipe again")
        write_step_file(place, started.model_copy(update={"record": record}))
    return Done(record)


def check_outputs(step: PlannedStep, is_own: bool) -> None:
    """Raises: InputError where an output exists that the recipe did not write and may not replace."""
    if is_own or step.arguments.get("overwrite"):
        return
    for path in step.writes:
        if os.path.lexists(path):
            raise InputError(
                f"{path}: exists already, and no step of this recipe wrote it; remove it, or give the step "
                "another output or the option 'overwrite: true'"
            )


def _reads(task: Task, digests: Digests) -> dict[str, str]:
    """Returns the digests of what a step reads. Raises: InputError where something is missing."""
    found = {}
    for path in (*task.step.reads, *task.step.changes):
        digest = task.pins.get(path) or digests.of(path)
        if digest is None:
            raise InputError(f"{path}: no such file or folder")
        found[path] = digest
    return found


def _finished(
    step: PlannedStep, before: StepFile | None, reads: Mapping[str, str], digests: Digests
) -> StepRecord | None:
    """Returns the record of a step that another run has finished in the meantime."""
    if before is None or before.record is None or not step.outputs or step.changes:
        return None
    if why_not(step, before.record, reads) is not None:
        return None
    same = all(digests.of(path) == before.record.writes.get(path) for path in step.outputs)
    return before.record if same else None


def _record(task: Task, reads: Mapping[str, str], result: dict[str, Any], digests: Digests) -> StepRecord:
    step = task.step
    writes = {path: digests.of(path) or "" for path in step.outputs}
    return StepRecord(
        command=step.line, reads=dict(reads), writes=writes, versions=algorithm_versions(step),
        environment=environment(step), result=result,
    )  # fmt: skip


def _arguments(task: Task, is_own: bool) -> dict[str, Any]:
    """Returns the arguments of the call: hub ids at their commits, and what lets it continue and replace."""
    command, step = get_command(task.step.command), task.step
    found = {name: _pinned(value, task.pins) for name, value in step.arguments.items()}
    known = command.parameters
    if is_own and "overwrite" in known:
        found["overwrite"] = True
    if "jobs" in known and task.threads is not None:
        found.setdefault("jobs", task.threads)
    if "resume" in known:
        found["resume"] = True
        states = found | {"checkpoint_every": _EVERY}
        if runs_model(step.command, step.arguments) and not unused_options(command, states):
            found.setdefault("checkpoint_every", _EVERY)
    return found


def _pinned(value: Any, pins: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        task, equals, path = value.rpartition("=")  # `merge` takes TASK=PATH
        if path in pins:
            return f"{task}{equals}{path.partition('@')[0]}@{pins[path]}"
        return value
    if isinstance(value, list):
        return [_pinned(each, pins) for each in value]
    if isinstance(value, dict):
        return {key: _pinned(each, pins) for key, each in value.items()}
    return value


def _stamps(step: PlannedStep) -> str:
    """Returns the sizes and times of the files that a step reads."""
    found = []
    for path in step.reads:
        files = [Path(path)] if os.path.isfile(path) else sorted(Path(path).glob("*"))
        found += [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return repr(found)


def _clear(step: PlannedStep, before: StepFile | None, started: StepFile) -> None:
    """Removes what killed runs of the step left: working folders, and side files of other inputs."""
    if before is None:
        return
    for output in map(Path, step.outputs):
        remove_abandoned(output)
        if before.model_copy(update={"record": None}) != started:
            for suffix in _SIDE_FILES:
                output.with_name(output.name + suffix).unlink(missing_ok=True)
