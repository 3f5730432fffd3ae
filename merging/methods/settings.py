"""Settings of methods: a pydantic model made from the keyword-only arguments of a method's function.

An argument's annotation carries its range and meaning: `drop: Annotated[float, Field(ge=0, lt=1,
description="…")] = 0.6`. One that is annotated `ByTask` may have another value for each task of a merge.
"""

import functools
import inspect
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from flexswitch.codecs.errors import UsageError, unknown_name
from flexswitch.merging.methods.registry import Method, get_method, method_names

ByTask = float | Sequence[float]

MOST_NUMBER = float(np.finfo(np.float32).max)  # what is computed with a larger one is infinite or NaN
NUMBER_EXPECTED = f"expected a number from {-MOST_NUMBER:.6g} to {MOST_NUMBER:.6g}, which float32 holds"
_WORDS: dict[Any, str] = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}


class Setting(NamedTuple):
    """One setting as it is shown: its default, what values it takes, and what it means."""

    name: str
    default: Any
    expected: str
    meaning: str


@functools.cache
def settings_model(method: Method) -> type[BaseModel]:
    """Returns the model of a method's settings; the argument `lambda_` is the setting `lambda`."""
    parameters = inspect.signature(method.load(), eval_str=True).parameters.values()
    fields: dict[str, Any] = {
        each.name: (
            Annotated[_from_text(_single(each.annotation)), Field(alias=each.name.rstrip("_"))],
            each.default,
        )
        for each in parameters
        if each.kind is inspect.Parameter.KEYWORD_ONLY
    }
    config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    return create_model(method.name, __config__=config, **fields)


def check_settings(method: Method, settings: Mapping[str, Any]) -> BaseModel:
    """Returns a method's settings, those that are given over the defaults.

    A value may be a text, as on the command line. `dict(model)` has the function's arguments,
    `recorded(model)` what an artifact records. Raises: UsageError on an unknown name or a value out of range.
    """
    model = settings_model(method)
    try:
        found = model.model_validate(dict(settings))
    except ValidationError as error:
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            known = [each.name for each in describe_settings(method)]
            raise UsageError(unknown_name(f"setting of {method.name}", name, known)) from error
        # A validator of the method's own says itself what it expects.
        if first["type"] == "value_error":
            expected = str(first["ctx"]["error"])
        else:
            expected = f"expected {_expected(_fields(model)[name])}"
        raise UsageError(f"setting {name}={first['input']} of {method.name}: {expected}") from error
    for name, value in recorded(found).items():
        if isinstance(value, float) and abs(value) > MOST_NUMBER:
            raise UsageError(f"setting {name}={settings[name]} of {method.name}: {NUMBER_EXPECTED}")
    return found


@functools.cache
def by_task_settings(method: Method) -> frozenset[str]:
    """Returns the names of the settings that may have another value for each task."""
    parameters = inspect.signature(method.load(), eval_str=True).parameters.values()
    return frozenset(
        each.name.rstrip("_") for each in parameters if _single(each.annotation) != each.annotation
    )


def recorded(settings: BaseModel) -> dict[str, Any]:
    """Returns settings by name, without those that are None."""
    return settings.model_dump(by_alias=True, exclude_none=True)


def parse_settings(
    texts: Sequence[str], option: str = "--set", expected: str = "KEY=VALUE", *, at_last: bool = False
) -> dict[str, str]:
    """Returns settings from `KEY=VALUE` texts; the last of two values of one key counts. Raises: UsageError.

    at_last: split at the last `=`, for keys that may hold one, such as a task's name.

    >>> parse_settings(["drop=0.7", "seed=3"])
    {'drop': '0.7', 'seed': '3'}
    """
    found = {}
    for text in texts:
        key, equals, value = text.rpartition("=") if at_last else text.partition("=")
        if not equals:
            raise UsageError(f"{option} {text}: expected {expected}")
        found[key] = value
    return found


def parse_overrides(texts: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Returns (pattern, settings) of `PATTERN:KEY=VALUE` texts; a pattern may hold `=`. Raises: UsageError.

    >>> parse_overrides(["sst2:*.mlp.*:density=0.3"])
    [('sst2:*.mlp.*', {'density': '0.3'})]
    """
    found = []
    for text in texts:
        left, _, value = text.rpartition("=")
        pattern, colon, key = left.rpartition(":")
        if not colon or "=" not in text:
            raise UsageError(f"--set-for {text}: expected GLOB:KEY=VALUE or TASK:GLOB:KEY=VALUE")
        found.append((pattern, {key: value}))
    return found


def describe_settings(method: Method) -> list[Setting]:
    """Returns a method's settings in the order of its function's arguments."""
    fields = _fields(settings_model(method))
    return [
        Setting(name, field.default, _expected(field), field.description or "")
        for name, field in fields.items()
    ]


def takes_whole_numbers(method: Method, setting: str) -> bool:
    """Returns whether a setting takes whole numbers only; False where the method has no such setting."""
    field = _fields(settings_model(method)).get(setting)
    return field is not None and field.annotation is int


def compressions_with(setting: str) -> list[str]:
    """Returns the names of the compression methods that have a setting."""
    names = method_names("compression")
    return [name for name in names if setting in _fields(settings_model(get_method(name, "compression")))]


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Returns a model's fields by the names of the settings."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _single(annotation: Any) -> Any:
    """Returns the annotation of one task's value."""
    if get_origin(annotation) is not Annotated:
        return annotation
    bare, *metadata = get_args(annotation)
    return Annotated[float, *metadata] if bare == ByTask else annotation


def _from_text(annotation: Any) -> Any:
    """Returns an annotation that also takes a `Literal`'s choices as texts, numbers among them."""
    bare, *metadata = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if get_origin(bare) is not Literal:
        return annotation
    by_text = {str(choice): choice for choice in get_args(bare)}

    def choice(value: Any) -> Any:
        return by_text.get(value, value) if isinstance(value, str) else value

    return Annotated[bare, BeforeValidator(choice), *metadata]


def _expected(field: FieldInfo) -> str:
    """Returns what values a setting takes, in words.

    >>> _expected(FieldInfo.from_annotation(Annotated[float, Field(ge=0, lt=1)]))
    'a number of at least 0 and below 1'
    >>> _expected(FieldInfo.from_annotation(Literal["mean", "sum"]))
    'mean or sum'
    """
    is_union = get_origin(field.annotation) in (Union, UnionType)
    kinds = get_args(field.annotation) if is_union else (field.annotation,)
    choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices:
        return " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))
    named = " or ".join(words for kind, words in _WORDS.items() if kind in kinds)
    bounds = {
        key: value
        for constraint in field.metadata
        for key in ("ge", "gt", "le", "lt")
        if (value := getattr(constraint, key, None)) is not None
    }
    if list(bounds) == ["ge", "le"]:
        return f"{named} from {bounds['ge']:g} to {bounds['le']:g}"
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    texts = [f"{words[key]} {value:g}" for key, value in bounds.items()]
    return " ".join([named, " and ".join(texts)]).strip()
