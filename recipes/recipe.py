"""Recipes: YAML files of named steps, each a subcommand with its inputs and options."""

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.main
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flexswitch.codecs.errors import ExpectationError, InputError, unknown_name

Scalar = str | int | float | bool


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Bound(_Record):
    """The bound that a figure of a step's result must meet."""

    at_least: float | None = None
    at_most: float | None = None
    equals: Scalar | None = None


class Step(_Record):
    """One subcommand.

    foreach repeats the step for each value of a name, which replaces {name} in every text of the
    step; expect maps the path of a figure in the step's result, its keys joined by '/', to its bound.
    """

    name: str
    command: str
    inputs: list[str] = []
    options: dict[str, Scalar | list[Scalar] | dict[str, Scalar]] = {}
    foreach: Annotated[dict[str, list[str]], Field(max_length=1)] = {}
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


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a repeated key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        twice = [key for number, key in enumerate(keys) if key in keys[:number]]
        if twice:
            raise yaml.MarkedYAMLError(problem=f"key '{twice[0]}' is repeated", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_recipe(path: Path) -> Recipe:
    """Returns a recipe. Raises: InputError naming the first wrong key and the nearest known one."""
    if not path.is_file():
        raise InputError(f"{path}: no such recipe")
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as reason:
        line = f", line {reason.problem_mark.line + 1}" if reason.problem_mark else ""
        raise InputError(f"{path}{line}: is not YAML ({reason.problem})") from reason
    except (yaml.YAMLError, UnicodeDecodeError) as reason:
        raise InputError(f"{path}: is not YAML ({' '.join(str(reason).split())})") from reason
    try:
        return Recipe.model_validate(document)
    except ValidationError as reason:
        raise InputError(f"{path}: {_describe(reason)}") from reason


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


def check_expectations(step: CommandLine, document: dict[str, Any], source: Path) -> None:
    """Raises: ExpectationError where a figure of a step's result is outside its bound; InputError."""
    for path, bound in step.expect.items():
        found: Any = document
        for key in path.split("/"):
            if not isinstance(found, dict) or key not in found:
                known = found if isinstance(found, dict) else ()
                raise InputError(f"{source}: step '{step.name}': {unknown_name('figure', key, known)}")
            found = found[key]
        if bound.equals is None and (isinstance(found, bool) or not isinstance(found, int | float)):
            raise InputError(f"{source}: step '{step.name}': {path} is no number, so it has no bounds")
        wanted = [
            (bound.at_least is None or found >= bound.at_least, f"at least {bound.at_least}"),
            (bound.at_most is None or found <= bound.at_most, f"at most {bound.at_most}"),
            (bound.equals is None or found == bound.equals, f"{bound.equals}"),
        ]
        for holds, expected in wanted:
            if not holds:
                raise ExpectationError(
                    f"{source}: step '{step.name}': {path} is {found}, expected {expected}"
                )


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


def _describe(error: ValidationError) -> str:
    """Returns one problem of a recipe in words: an unknown key first, because it may cause the others."""
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    *parents, last = first["loc"] or ("recipe",)
    where = ".".join(map(str, parents)) or "the recipe"
    if first["type"] == "extra_forbidden":
        record: type[BaseModel] = Recipe
        if parents:
            record = Bound if "expect" in parents else Step
        return f"in {where}: {unknown_name('key', str(last), record.model_fields)}"
    return f"in {where}: '{last}': {first['msg']}"
