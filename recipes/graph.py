"""The order of a recipe's steps: which ones a step waits for, by the paths that they read and write."""

import graphlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from flexswitch.codecs.errors import InputError, unknown_name
from flexswitch.recipes.plan import Plan


@dataclass(frozen=True)
class Graph:
    """The steps of a plan and their order; steps are named by their position in the plan.

    before: the steps that each waits for. writers: the steps that write each path, in their order; all but
    the first change it. sources: for each step and path that it reads or changes, the step whose version of
    the path that is. partly: for each step, those that write only a part of a path that it reads, or more.
    """

    plan: Plan
    before: list[set[int]]
    writers: dict[str, list[int]]
    sources: list[dict[str, int]]
    partly: list[set[int]]

    @cached_property
    def order(self) -> list[int]:
        """The steps, each behind those that it waits for. Raises: InputError on a circle."""
        try:
            return list(graphlib.TopologicalSorter(dict(enumerate(self.before))).static_order())
        except graphlib.CycleError as error:
            names = [f"'{self.plan.steps[number].name}'" for number in reversed(error.args[1])]
            raise InputError(
                f"{self.plan.source}: these steps wait for each other: {' → '.join(names)}; a step reads "
                "what the one before it writes"
            ) from error

    @cached_property
    def after(self) -> list[set[int]]:
        """The steps that wait for each."""
        found: list[set[int]] = [set() for _ in self.before]
        for number, earlier in enumerate(self.before):
            for each in earlier:
                found[each].add(number)
        return found

    @cached_property
    def urgency(self) -> list[int]:
        """The number of steps in the longest chain that waits for each."""
        found = [0] * len(self.before)
        for number in reversed(self.order):
            found[number] = max((found[each] + 1 for each in self.after[number]), default=0)
        return found


def make_graph(plan: Plan) -> Graph:
    """Returns the graph of a plan. Raises: InputError where two steps write one path, or on a circle."""
    writers = _writers(plan)
    inside = _folders(writers)
    before: list[set[int]] = [set() for _ in plan.steps]
    sources: list[dict[str, int]] = [{} for _ in plan.steps]
    partly: list[set[int]] = [set() for _ in plan.steps]
    for number, step in enumerate(plan.steps):
        for path in (*step.reads, *step.changes):
            for written in _overlapping(path, writers, inside):
                source = _version(number, path in step.changes, writers[written])
                if source is None:
                    continue
                before[number].add(source)
                if written == path:
                    sources[number][path] = source
                else:
                    partly[number].add(source)
                chain = writers[written]
                later = chain[chain.index(source) + 1 :]
                if later and later[0] != number:  # read before the next step changes it
                    before[later[0]].add(number)
    graph = Graph(plan, before, writers, sources, partly)
    _ = graph.order  # raises on a circle
    return graph


def _writers(plan: Plan) -> dict[str, list[int]]:
    """Returns the steps that write each path: the one that makes it, then those that change it."""
    makers: dict[str, int] = {}
    found: dict[str, list[int]] = {}
    for number, step in enumerate(plan.steps):
        for path in step.writes:
            if path in makers:
                first = plan.steps[makers[path]].name
                raise InputError(
                    f"{plan.source}: the steps '{first}' and '{step.name}' both write {path}; give one of "
                    "them another output"
                )
            makers[path] = number
            found.setdefault(path, []).insert(0, number)
        for path in step.changes:
            found.setdefault(path, []).append(number)
    _check_apart(plan, makers)
    return found


def _check_apart(plan: Plan, makers: Mapping[str, int]) -> None:
    """Raises: InputError where one step writes into what another writes whole."""
    for path, number in makers.items():
        for folder in _parents(path):
            if folder in makers and makers[folder] != number:
                names = f"'{plan.steps[makers[folder]].name}' and '{plan.steps[number].name}'"
                raise InputError(
                    f"{plan.source}: the steps {names} write {folder} and {path} in it; give one of them an "
                    "output elsewhere"
                )


def _folders(paths: Mapping[str, object]) -> dict[str, list[str]]:
    """Returns the paths below each folder."""
    found: dict[str, list[str]] = {}
    for path in paths:
        for folder in _parents(path):
            found.setdefault(folder, []).append(path)
    return found


def _overlapping(path: str, writers: Mapping[str, object], inside: Mapping[str, list[str]]) -> Iterator[str]:
    """Yields the written paths that are the path, hold it or lie in it."""
    for each in (path, *_parents(path)):
        if each in writers:
            yield each
    yield from inside.get(path, ())


def _parents(path: str) -> Iterator[str]:
    while (folder := os.path.dirname(path)) not in ("", path):
        yield folder
        path = folder


def _version(number: int, changes: bool, chain: list[int]) -> int | None:
    """Returns the step whose version of a path a step works on: the last one before it in the recipe.

    A step that stands before all that write the path reads what the last of them leaves.
    """
    if changes:
        place = chain.index(number)
        return chain[place - 1] if place else None
    earlier = [each for each in chain if each < number]
    return earlier[-1] if earlier else chain[-1]


def share_of(graph: Graph, shares: int) -> list[int | None]:
    """Returns the share of each step; None for steps that wait for several shares, and all behind them.

    The same plan always gives the same shares. Steps that wait for nothing are dealt out in turn.
    """
    found: list[int | None] = [None] * len(graph.before)
    dealt = 0
    for number in _in_file_order(graph):
        earlier = {found[each] for each in graph.before[number]}
        if not earlier:
            found[number], dealt = dealt % shares, dealt + 1
        elif len(earlier) == 1:
            found[number] = earlier.pop()
    return found


def _in_file_order(graph: Graph) -> list[int]:
    """Returns the steps that wait for nothing in the recipe's order, and the others behind them."""
    first = [number for number, earlier in enumerate(graph.before) if not earlier]
    return first + [number for number in graph.order if graph.before[number]]


def steps_named(plan: Plan, names: list[str]) -> set[int]:
    """Returns the steps of these names, where one with {task} means every repetition. Raises: InputError."""
    known: dict[str, set[int]] = {}
    for number, step in enumerate(plan.steps):
        known.setdefault(step.name, set()).add(number)
        known.setdefault(step.template, set()).add(number)
    found: set[int] = set()
    for name in names:
        if name not in known:
            raise InputError(f"--only: {unknown_name('step', name, known)}")
        found |= known[name]
    return found
