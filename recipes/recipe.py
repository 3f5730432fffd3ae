"""Recipes: YAML files of named steps, each a subcommand with its inputs and options."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainValidator,
    TypeAdapter,
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
    if value is not None and not all(map(_is_scalar, entries)):
        raise ValueError("a text, a number, true or false, or a list or a mapping of those")
    return value


def _values(value: object) -> object:
    if isinstance(value, dict) and list(value) == ["glob"] and isinstance(value["glob"], str):
        return value
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return value
    raise ValueError("a list of at least one text, or {glob: PATTERN}")


def _names(value: object) -> object:
    if not isinstance(value, dict) or not value:
        raise ValueError("names with their values")
    for name, values in value.items():
        if name == "table":
            if not isinstance(values, str):
                raise ValueError("a file of comma-separated values behind 'table'")
            continue
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ValueError("names of letters, digits and '_'")
        _values(values)
    return value


def _size(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,15})? ?[KMGT]i?B", value):
        raise ValueError("a size such as 8GB")
    return value


Options = dict[str, Annotated[Any, AfterValidator(_option)]]


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


class Needs(_Record):
    """What a step takes of a machine: processor cores, GPUs, and memory as a size such as 8GB."""

    cpus: Annotated[int, Field(ge=1)] | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None
    memory: Annotated[str | None, AfterValidator(_size)] = None

    @property
    def memory_bytes(self) -> int:
        """The memory in bytes, 0 where none is named."""
        return 0 if self.memory is None else int(TypeAdapter(ByteSize).validate_python(self.memory))


class Step(_Record):
    """One subcommand.

    foreach repeats the step for each value of its names, which replace {name} in every text of the step;
    expect maps the path of a figure in the step's result, its keys joined by '/', to its bound.
    """

    name: str
    command: str
    inputs: list[str] = []
    options: Options = {}
    foreach: Annotated[dict[str, Any], PlainValidator(_names)] = {}
    needs: Needs = Needs()
    expect: dict[str, Bound] = {}


class Recipe(_Record):
    """The content of a recipe file.

    include: recipes whose steps come before these. defaults: options of every step whose command has them.
    """

    version: Literal[1]
    include: list[str] = []
    defaults: Options = {}
    steps: Annotated[list[Step], Field(min_length=1)]


def read_recipe(path: Path) -> Recipe:
    """Returns a recipe. Raises: InputError naming the step and the first wrong key or value."""
    document = read_yaml(path)
    try:
        return Recipe.model_validate(document)
    except ValidationError as reason:
        raise InputError(f"{path}: {_describe(reason, document)}") from reason


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
            inner: dict[str, type[BaseModel]] = {"expect": Bound, "needs": Needs}
            record = inner.get(keys[0], Step) if keys[1:] else Step
        inside = f" in '{'/'.join(keys[:-1])}'" if keys[:-1] else ""
        return f"{where}{unknown_name('key', keys[-1], record.model_fields)}{inside}"
    if first["type"] == "missing":
        return f"{where}lacks the key '{'/'.join(keys)}'"
    context = first.get("ctx", {})
    expected = _EXPECTED.get(first["type"]) or str(context.get("error") or context.get("expected"))
    expected = f"{context['ge']} or more" if "ge" in context else expected
    named = f"'{'/'.join(keys)}'" if keys else "the step" if where else "the recipe"
    return f"{where}{named} is {_shown(first['input'])}, expected {expected}"


def _place(location: tuple[int | str, ...], document: Any) -> tuple[str, list[str]]:
    """Returns the step, as "step 2, 'pack': " or nothing, and the keys that lead to a value in it."""
    if len(location) < 2 or location[0] != "steps":
        return "", [f"{part + 1}" if isinstance(part, int) else part for part in location]
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
