"""Plans a recipe: its steps, one for each repetition, with what each reads and writes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from flexswitch.codecs.errors import InputError, unknown_name
from flexswitch.recipes.commands import (
    COMMANDS,
    Command,
    arguments_of,
    command_line,
    get_command,
    options_key,
    paths_of,
    unused_options,
)
from flexswitch.recipes.foreach import combinations, fill, matching_files
from flexswitch.recipes.recipe import Bound, Needs, Recipe, Step, read_recipe

_WILD = frozenset("*?[")
_Unused = dict[str, frozenset[str]]  # the options that would do nothing, by `options_key`


@dataclass(frozen=True)
class PlannedStep:
    """One call of a command.

    template: the name in the recipe, before {name} is replaced. line: its command line. reads, writes,
    changes: normal paths, as far as they are local; what is changed is in neither of the others.
    """

    name: str
    template: str
    command: str
    arguments: dict[str, Any]
    line: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    changes: tuple[str, ...]
    needs: Needs = field(default_factory=Needs)
    expect: dict[str, Bound] = field(default_factory=dict)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The paths that are other ones after the step."""
        return self.writes + self.changes


@dataclass(frozen=True)
class Plan:
    """The steps in the recipe's order, and notes for the user."""

    source: Path
    steps: list[PlannedStep]
    notes: list[str]


def make_plan(source: Path) -> Plan:
    """Returns the plan of a recipe. Raises: InputError naming the step and what is wrong with it."""
    drafts = []
    for file, recipe in _with_included(source, set()):
        _check_defaults(recipe, file)
        drafts += [draft for step in recipe.steps for draft in _drafts(step, recipe, file)]
    _check_names(drafts, source)
    made: dict[str, list[str]] = {}  # folder → paths written there; what inputs with * may stand for
    for draft in drafts:
        for path in draft.outputs():
            made.setdefault(os.path.dirname(path), []).append(path)
    notes: list[str] = []
    known: _Unused = {}
    steps = [draft.planned(made, notes, known) for draft in drafts]
    return Plan(source, steps, list(dict.fromkeys(notes)))


def is_pattern(text: str) -> bool:
    """Returns whether an input holds a wildcard."""
    return not _WILD.isdisjoint(text)


@dataclass(frozen=True)
class _Draft:
    """A step whose inputs may still hold patterns. defaults: the options that are the recipe's defaults."""

    step: Step
    name: str
    inputs: list[str]
    options: dict[str, Any]
    values: dict[str, str]
    where: str
    defaults: frozenset[str]

    def outputs(self) -> list[str]:
        """Returns the paths that the step writes."""
        with_inputs = self.inputs or ["-"]
        _, writes, changes = _paths(self.step.command, with_inputs, self.options, self.where)
        return [path for path in writes + changes if not is_pattern(path)]

    def planned(self, made: dict[str, list[str]], notes: list[str], known: _Unused) -> PlannedStep:
        """Returns the step with its patterns replaced by paths. Raises: InputError."""
        try:
            inputs = [path for text in self.inputs for path in _expanded(text, made, notes)]
            command = get_command(self.step.command)
            options = self._used_options(command, inputs, known)
            arguments = arguments_of(command, inputs, options)
        except InputError as reason:
            raise InputError(f"{self.where}{reason}") from reason
        reads, writes, changes = (tuple(map(_normal, each)) for each in paths_of(command, arguments))
        for path in (*writes, *changes):
            if os.path.basename(path) in ("", os.curdir, os.pardir):
                raise InputError(
                    f"{self.where}'{path}' is no name of an output; give a path that ends in one"
                )
        for path in reads:
            if _holds_current_folder(path):
                raise InputError(
                    f"{self.where}'{path}' holds the current folder, so that all in both would be read; give "
                    "the file or folder that is meant"
                )
        return PlannedStep(
            self.name, self.step.name, self.step.command, arguments,
            command_line(command, inputs, options), reads, writes, changes, self.step.needs,
            {fill(figure, self.values): bound for figure, bound in self.step.expect.items()},
        )  # fmt: skip

    def _used_options(self, command: Command, inputs: list[str], known: _Unused) -> dict[str, Any]:
        """Returns the options without the recipe's defaults that would do nothing in this step.

        known: what was found for steps of the same options, whatever their paths; it is added to.
        """
        options = dict(self.options)
        while self.defaults & options.keys():
            key = options_key(command, options)
            if key not in known:
                known[key] = frozenset(unused_options(command, arguments_of(command, inputs, options)))
            if not self.defaults & options.keys() & known[key]:
                break
            options = {name: value for name, value in options.items() if name not in known[key]}
        return options


def _drafts(step: Step, recipe: Recipe, source: Path) -> Iterator[_Draft]:
    where = f"{source}: step '{step.name}': "
    try:
        command = get_command(step.command)
        options = {key: value for key, value in recipe.defaults.items() if key in command.options}
        defaults = frozenset(options.keys() - step.options.keys())
        options = {key: each for key, each in (options | step.options).items() if each is not None}
        for values in combinations(step.foreach):
            name = fill(step.name, values)
            filled = fill(options, values)
            _check_folders(command, options, filled)
            yield _Draft(
                step, name, fill(step.inputs, values), filled, values,
                f"{source}: step '{name}': ", defaults,
            )  # fmt: skip
    except InputError as reason:
        raise InputError(f"{where}{reason}") from reason


def _check_folders(command: Command, options: dict[str, Any], filled: dict[str, Any]) -> None:
    """Raises: InputError where a value of foreach leads an output out of the folder that the recipe names."""
    for option, template in options.items():
        access = command.accesses.get(command.options.get(option, ""))
        if access is None or access.kind == "reads" or not isinstance(template, str):
            continue
        fixed, brace, _ = template.partition("{")
        folder = os.path.dirname(fixed) if brace else ""
        if folder and os.path.relpath(filled[option], folder).split(os.sep)[0] == os.pardir:
            raise InputError(
                f"'{option}' is '{template}' and becomes '{filled[option]}', which is outside of {folder}"
            )


def _check_names(drafts: list[_Draft], source: Path) -> None:
    """Raises: InputError where two steps have one name, since the lock has a record for each name."""
    seen: set[str] = set()
    for draft in drafts:
        if draft.name in seen:
            advice = "rename one"
            if draft.step.foreach:
                advice = "put the values of foreach into the name, as {task}, and give each once"
            raise InputError(f"{source}: two steps are named '{draft.name}'; {advice}")
        seen.add(draft.name)


def _with_included(source: Path, seen: set[str]) -> Iterator[tuple[Path, Recipe]]:
    """Yields the recipes that a recipe includes, and then itself.

    seen: the recipes that are included already. Raises: InputError where one is included twice.
    """
    place = os.path.realpath(source)
    if place in seen:
        raise InputError(f"{source}: includes itself, or is included twice; leave that out of 'include'")
    seen.add(place)
    recipe = read_recipe(source)
    for path in recipe.include:
        yield from _with_included(Path(path), seen)
    yield source, recipe


def _check_defaults(recipe: Recipe, source: Path) -> None:
    """Raises: InputError on a default that is an option of no step's command."""
    used = {step.command for step in recipe.steps} & COMMANDS.keys()
    known = sorted({option for name in used for option in COMMANDS[name].options})
    for option in recipe.defaults:
        if option not in known:
            raise InputError(f"{source}: in 'defaults': {unknown_name('option', option, known)}")


def _paths(command: str, inputs: list[str], options: dict[str, Any], where: str) -> Any:
    try:
        found = get_command(command)
        return [list(map(_normal, each)) for each in paths_of(found, arguments_of(found, inputs, options))]
    except InputError as reason:
        raise InputError(f"{where}{reason}") from reason


def _expanded(text: str, made: dict[str, list[str]], notes: list[str]) -> list[str]:
    """Returns the paths that an input stands for: outputs of steps, else files that exist.

    Raises: InputError where it stands for none.
    """
    if not is_pattern(text):
        return [text]
    folder, pattern = os.path.split(_normal(text))
    folders = [folder] if not is_pattern(folder) else [each for each in made if _matches(each, folder)]
    found = [
        path
        for each in folders
        for path in made.get(each, [])
        if fnmatchcase(os.path.basename(path), pattern)
    ]
    files = matching_files(text)
    if found and folder and (below := _matching_below(folder, pattern, made)):
        notes.append(f"'{text}' leaves out what steps write in folders below: {_named(below)}")
    if not found:
        if not files:
            raise InputError(f"'{text}' matches no output of a step and no file")
        return files
    if others := sorted({_normal(path) for path in files} - set(found)):
        notes.append(f"'{text}' takes what steps of this recipe write; left out are {_named(others)}")
    return sorted(set(found))


def _matching_below(folder: str, pattern: str, made: dict[str, list[str]]) -> list[str]:
    below = [paths for each, paths in made.items() if each.startswith(f"{folder}{os.sep}")]
    return sorted(path for paths in below for path in paths if fnmatchcase(os.path.basename(path), pattern))


def _matches(path: str, pattern: str) -> bool:
    parts, patterns = path.split(os.sep), pattern.split(os.sep)
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _named(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} others" if len(paths) > 3 else "")


def _holds_current_folder(path: str) -> bool:
    """Returns whether a path is a folder above the current one."""
    if not path.startswith((os.sep, os.pardir)):  # nearly all
        return False
    return os.getcwd().startswith(os.path.join(os.path.abspath(path), ""))


def _normal(path: str) -> str:
    return os.path.normpath(os.path.expanduser(path))
