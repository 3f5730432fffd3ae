"""Settings of methods: `key=value` texts checked against the keyword-only arguments of a function."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from flexswitch.codecs.errors import UsageError, unknown_name


def parse_settings(name: str, method: Callable[..., Any], texts: Sequence[str]) -> dict[str, Any]:
    """Returns a method's arguments, given texts over defaults; `lambda_` is written `lambda`.

    Raises: UsageError on a text without '=', an unknown setting, or a value of the wrong type.
    """
    parameters = _settings(method)
    arguments = {key: parameter.default for key, parameter in parameters.items()}
    by_option = {key.rstrip("_"): key for key in parameters}
    for text in texts:
        option, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: expected key=value")
        if option not in by_option:
            raise UsageError(f"--set {text}: {unknown_name(f'setting of {name}', option, by_option)}")
        key = by_option[option]
        try:
            arguments[key] = TypeAdapter(parameters[key].annotation).validate_python(value)
        except ValidationError as error:
            raise UsageError(f"--set {text}: {error.errors()[0]['msg']}") from error
        if isinstance(arguments[key], float) and not math.isfinite(arguments[key]):
            raise UsageError(f"--set {text}: expected a finite number")
    return arguments


def setting_texts(arguments: dict[str, Any]) -> list[str]:
    """Returns a method's arguments as `key=value` texts, the inverse of `parse_settings`."""
    return [f"{key.rstrip('_')}={value}" for key, value in arguments.items()]


def setting_names(method: Callable[..., Any]) -> list[str]:
    """Returns the names of a method's settings, as Python writes them."""
    return list(_settings(method))


def _settings(method: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(method).parameters
    return {name: each for name, each in parameters.items() if each.kind is inspect.Parameter.KEYWORD_ONLY}
