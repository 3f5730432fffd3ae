"""Recipes: YAML files of named steps, each a subcommand with its inputs and options."""

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.main
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainValidator,
    ValidationError,
    model_validator,
)

from flexswitch.codecs.errors import InputError, unknown_name
from flexswitch.recipes.reading import read_yaml

Scalar = str | int | float | bool


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | int | float | bool)


def _scalar(value: object) -> Scalar:
    if not isinstance(value, str | int | float | bool):
        raise ValueError("a text, a number, true or false")
    return value


def _option(value: object) -> object:
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    if not all(map(_is_scalar, entries)):
        raise ValueError("a text, a number, true or false, or a list or a mapping of those")
    return value


def _one_name_with_values(value: dict[str, list[str]]) -> dict[str, list[str]]:
    if len(value) > 1 or [] in value.values():
        raise ValueError("one name with a list of at least one value")
    return value


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Bound(_Record):
    """The bound that a figure of a step's result must meet."""

    at_least: FiniteFloat | None = None
    at_most: FiniteFloat | None = None
    equals: Annotated[Scalar | None, PlainValidator(_scalar)] = None

    @model_validator(mode="after")
    def _bounds_something(self) -> "Bound":
        if self.at_least is self.at_most is self.equals is None:
            raise ValueError("at least one of at_least, at_most and equals")
        return self


class Step(_Record):
    """One subcommand.

    foreach repeats the step for each value of a name, which replaces {name} in every text of the
    step; expect maps the path of a figure in the step's result, its keys joined by '/', to its bound.
    """

    name: str
    command: str
    inputs: list[str] = []
    options: dict[str, Annotated[Any, AfterValidator(_option)]] = {}
    foreach: Annotated[dict[str, list[str]], AfterValidator(_one_name_with_values)] = {}
    expect: dict[str, Bound] = {}


class Recipe(_Record):
    """The content of a recipe file."""

    version: Literal[1]
    steps: Annotated[list[Step], Field(min_length=1)]


class CommandLine(_Record):
    """A step's name, its words after `flexswitch`, and the bounds of its result."""

    name: str
    arguments: list[str]
    expect: dict[str, Bound]


def read_recipe(path: Path) -> Recipe:
    """Returns a recipe. Raises: InputError naming the step and the first wrong key or value."""
    document = read_yaml(path)
    try:
        return Recipe.model_validate(document)
    except ValidationError as reason:
        raise InputError(f"{path}: {_describe(reason, document)}") from reason


def command_lines(recipe: Recipe, app: typer.Typer, source: Path) -> list[CommandLine]:
    """Returns the recipe's steps as command lines, all checked against the subcommands' options.

    Raises: InputError naming the step, and the nearest known subcommand or option.
    """
    commands = {name: command for name, command in _commands(app).items() if name != "run"}
    lines = []
    for step in recipe.steps:
        where = f"{source}: step '{step.name}'"
        if step.command not in commands:
            raise InputError(f"{where}: {unknown_name('subcommand', step.command, commands)}")
        known = sorted(
            option.removeprefix("--") for option in commands[step.command] if option.startswith("--")
        )
        for option in step.options:
            if option not in known:
                raise InputError(f"{where}: {unknown_name(f'option of {step.command}', option, known)}")
        lines += [_command_line(step, values) for values in _combinations(step)]
    return lines


def _commands(app: typer.Typer) -> dict[str, list[str]]:
    """Returns each subcommand's option names."""
    group: Any = typer.main.get_command(app)
    return {
        name: [option for parameter in command.params for option in parameter.opts]
        for name, command in group.commands.items()
    }


def _combinations(step: Step) -> list[dict[str, str]]:
    names = list(step.foreach)
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*step.foreach.values())]


def _command_line(step: Step, values: dict[str, str]) -> CommandLine:
    def fill(value: Scalar) -> str:
        text = str(value)
        for name, replacement in values.items():
            text = text.replace("{" + name + "}", replacement)
        return text

    words = [step.command, *map(fill, step.inputs)]
    for option, value in step.options.items():
        if isinstance(value, bool):
            words += [f"--{option}"] if value else []
        elif isinstance(value, dict):
            for key, entry in value.items():
                words += [f"--{option}", f"{fill(key)}={fill(entry)}"]
        else:
            for entry in value if isinstance(value, list) else [value]:
                words += [f"--{option}", fill(entry)]
    return CommandLine(name=fill(step.name), arguments=words, expect=step.expect)


# What a recipe must hold in place of a wrong value, by the type of pydantic's error.
_EXPECTED = {
    "string_type": "a text (put it in quotes)",
    "float_type": "a number",
    "finite_number": "a finite number",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "too_short": "at least one",
}


def _describe(error: ValidationError, document: Any) -> str:
    """Returns one problem of a recipe in words: an unknown key first, because it may cause the others."""
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    where, keys = _place(first["loc"], document)
    if first["type"] == "extra_forbidden":
        record: type[BaseModel] = Recipe
        if where:
            record = Bound if "expect" in keys else Step
        inside = f" in '{'/'.join(keys[:-1])}'" if keys[:-1] else ""
        return f"{where}{unknown_name('key', keys[-1], record.model_fields)}{inside}"
    if first["type"] == "missing":
        return f"{where}lacks the key '{'/'.join(keys)}'"
    context = first.get("ctx", {})
    expected = _EXPECTED.get(first["type"]) or str(context.get("error") or context["expected"])
    named = f"'{'/'.join(keys)}'" if keys else "the step" if where else "the recipe"
    return f"{where}{named} is {_shown(first['input'])}, expected {expected}"


def _place(location: tuple[int | str, ...], document: Any) -> tuple[str, list[str]]:
    """Returns the step, as "step 2, 'pack': " or nothing, and the keys that lead to a value in it."""
    if len(location) < 2:
        return "", list(map(str, location))
    number = int(location[1])
    step = document["steps"][number]
    name = step.get("name") if isinstance(step, dict) else None
    called = f", '{name}'" if isinstance(name, str) else ""
    keys = [f"{part + 1}" if isinstance(part, int) else part for part in location[2:]]
    return f"step {number + 1}{called}: ", keys


def _shown(value: Any) -> str:
    """Returns a value as a recipe writes it, cut short."""
    if isinstance(value, dict | list):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "empty"}[value]
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
