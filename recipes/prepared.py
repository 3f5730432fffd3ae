"""A recipe made ready: its graph, what its lock says, and which steps are to run."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flexswitch.codecs.errors import InputError
from flexswitch.recipes.digests import Digests
from flexswitch.recipes.graph import Graph, make_graph
from flexswitch.recipes.lock import (
    Lock,
    StepRecord,
    lock_file,
    read_lock,
    read_step_file,
    step_file,
)
from flexswitch.recipes.plan import PlannedStep, make_plan
from flexswitch.recipes.state import State, examine
from flexswitch.recipes.versions import differences, environment


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


def read_graph(recipe: Path) -> Graph:
    """Returns the graph of a recipe's steps. Raises: InputError."""
    return make_graph(make_plan(recipe))


def prepare(graph: Graph, from_lock_alone: bool = False) -> Prepared:
    """Returns a recipe's steps and their state. Raises: InputError."""
    lock_path = lock_file(graph.plan.source)
    lock, digests = read_lock(lock_path), Digests()
    records = dict(lock.steps)
    if not from_lock_alone:
        records |= _renamed(graph, lock)
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


def _renamed(graph: Graph, lock: Lock) -> dict[str, StepRecord]:
    """Returns the records of steps that have another name in the lock: those of the same command line."""
    names = {step.name for step in graph.plan.steps}
    known = {record.command: record for name, record in lock.steps.items() if name not in names}
    return {
        step.name: known[step.line]
        for step in graph.plan.steps
        if step.name not in lock.steps and step.line in known
    }


def _pins(graph: Graph, lock: Lock) -> dict[str, str]:
    """Returns the commits of the hub ids that steps read, as the lock has them, or else asked for now."""
    from flexswitch.codecs.format.hub_id import is_hub_id
    from flexswitch.merging.checkpoints.hub import resolve_commit

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
