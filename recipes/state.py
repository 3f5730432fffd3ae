"""Which steps of a plan are done: those whose record says what is on disk now."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from flexswitch.recipes.graph import Graph
from flexswitch.recipes.lock import StepRecord
from flexswitch.recipes.plan import PlannedStep
from flexswitch.recipes.versions import algorithm_versions


class PathDigests(Protocol):
    """Gives digests of paths."""

    def of(self, path: str) -> str | None:
        """Returns the digest of what is at a path; None where nothing is."""


@dataclass(frozen=True)
class State:
    """Why each step is to run, by its position in the plan; a step that is not in it is done."""

    reasons: Mapping[int, str]
    forced: frozenset[int] = field(default_factory=frozenset)


def examine(
    graph: Graph, records: Mapping[str, StepRecord], digests: PathDigests, pins: Mapping[str, str]
) -> State:
    """Returns the state of a plan's steps. pins: hub id → commit."""
    redone: set[int] = set()
    while True:
        reasons: dict[int, str] = {}
        current = {path: _current_writer(graph, path, records, digests) for path in graph.writers}
        for number in graph.order:
            reason = _reason(graph, number, records, digests, pins, reasons, current)
            if reason is not None or number in redone:
                reasons[number] = reason or "a step needs its output as it was before a later one changed it"
        more = _makers_needed(graph, reasons, current) - set(reasons)
        if not more:
            return State(reasons, frozenset(redone))
        redone |= more


def why_not(step: PlannedStep, record: StepRecord | None, reads: Mapping[str, str | None]) -> str | None:
    """Returns why a record does not hold for a step that reads these digests; None where it holds.

    What the step wrote is not looked at.
    """
    if record is None:
        return "it is new"
    if record.command != step.line:
        return "its options changed"
    if (now := algorithm_versions(step)) != record.versions:
        changed = [name for name in {**now, **record.versions} if now.get(name) != record.versions.get(name)]
        return f"{', '.join(sorted(changed))} computes otherwise in this version"
    for path in sorted({*reads, *record.reads}):
        if path not in reads or path not in record.reads:
            return f"it reads {path} {'no more' if path in record.reads else 'too'}"
        if reads[path] != record.reads[path]:
            return f"{path} changed"
    return None


def _reason(
    graph: Graph,
    number: int,
    records: Mapping[str, StepRecord],
    digests: PathDigests,
    pins: Mapping[str, str],
    reasons: Mapping[int, str],
    current: Mapping[str, int],
) -> str | None:
    step, record = graph.plan.steps[number], records.get(graph.plan.steps[number].name)
    if record is None:
        return "it is new"
    if later := graph.partly[number] & reasons.keys():
        return f"it comes after '{graph.plan.steps[min(later)].name}'"
    reads: dict[str, str | None] = {}
    for path in (*step.reads, *step.changes):
        source = graph.sources[number].get(path)
        if source is not None and source in reasons:
            return f"it comes after '{graph.plan.steps[source].name}'"
        if source is not None:
            reads[path] = records[graph.plan.steps[source].name].writes[path]
        elif path in step.changes:  # what was there before the first change is there no more
            reads[path] = record.reads.get(path)
        else:
            reads[path] = pins.get(path) or digests.of(path)
    if (reason := why_not(step, record, reads)) is not None:
        return reason
    for path in step.outputs:
        chain = graph.writers[path]
        if current[path] < chain.index(number):
            return f"{path} is missing" if digests.of(path) is None else f"{path} is not what it wrote"
    return None


def _current_writer(graph: Graph, path: str, records: Mapping[str, StepRecord], digests: PathDigests) -> int:
    """Returns which of a path's writers left it as it is now, as a position in their chain; -1 for none."""
    found, chain = digests.of(path), graph.writers[path]
    for place in reversed(range(len(chain))):
        record = records.get(graph.plan.steps[chain[place]].name)
        if found is not None and record is not None and record.writes.get(path) == found:
            return place
    return -1


def _makers_needed(graph: Graph, reasons: Mapping[int, str], current: Mapping[str, int]) -> set[int]:
    """Returns the steps that make a path anew, because a step to run needs an earlier version of it."""
    found = set()
    for number in reasons:
        step = graph.plan.steps[number]
        for path in (*step.reads, *step.changes):
            if path not in graph.writers or path not in graph.sources[number]:
                continue
            chain = graph.writers[path]
            maker = graph.plan.steps[chain[0]]
            if current[path] > chain.index(graph.sources[number][path]) and path in maker.writes:
                found.add(chain[0])
    return found
