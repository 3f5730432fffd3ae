"""Checks of arguments that several commands share."""

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from flexswitch.codecs.errors import InputError, UsageError, check_choice
from flexswitch.codecs.format.atomic import check_output
from flexswitch.codecs.format.fields import check_task_name
from flexswitch.merging.checkpoints.pairing import Resize, Selection
from flexswitch.merging.methods.settings import parse_overrides
from flexswitch.merging.task_vectors.task_name import task_name

_LONGEST_INPUT = 80  # characters in a message

Parameters = ParamSpec("Parameters")
Made = TypeVar("Made")


def _bytes(size: Any) -> Any:
    from flexswitch.codecs.byte_size import parse_size

    return parse_size(size) if isinstance(size, str) else size


def _overrides(given: Any) -> Any:
    """Returns the pairs of `PATTERN:KEY=VALUE` texts, and pairs as they are."""
    is_text = isinstance(given, Sequence) and bool(given) and all(isinstance(each, str) for each in given)
    return parse_overrides(given) if is_text else given


Overrides = Annotated[Sequence[tuple[str, Mapping[str, Any]]], BeforeValidator(_overrides)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Bytes = Annotated[int, BeforeValidator(_bytes)]
StoredDtype = Literal["float32", "bfloat16"]
OutputDtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Access:
    """Marks an argument that holds a path, or several, by what the command does there.

    changed_with: the arguments with which a command that otherwise writes a new output changes what exists.
    suffix: an argument's text is a path only where it ends so. named: it may be written as TASK=PATH.
    """

    kind: Literal["reads", "writes", "changes"]
    changed_with: tuple[str, ...] = ()
    suffix: str = ""
    named: bool = False


Input = Annotated[str | Path, Access("reads")]
Output = Annotated[str | Path, Access("writes")]
Changed = Annotated[str | Path, Access("changes")]


def checked(
    command: Callable[Parameters, Made], further: Callable[..., object] | None = None
) -> Callable[Parameters, Made]:
    """Returns a command that checks its arguments against their annotations before it starts.

    Its attribute `check` is a function that only checks them, and calls `further` with those of the arguments
    that this names.

    Raises: UsageError naming an argument of another type or outside its range.
    """

    @functools.cache
    def model() -> type[BaseModel]:
        fields: dict[str, Any] = {
            each.name: (each.annotation, ... if each.default is each.empty else each.default)
            for each in inspect.signature(command).parameters.values()
        }
        config = ConfigDict(arbitrary_types_allowed=True)
        return create_model(command.__name__, __config__=config, **fields)

    def check(*positional: Parameters.args, **named: Parameters.kwargs) -> dict[str, Any]:
        arguments = inspect.signature(command).bind(*positional, **named).arguments
        try:
            found = model().model_validate(arguments)
        except ValidationError as error:
            first = error.errors()[0]
            given = repr(first["input"])
            shown = given if len(given) <= _LONGEST_INPUT else f"{given[:_LONGEST_INPUT]}…"
            raise UsageError(
                f"{command.__name__}: {first['loc'][0]}={' '.join(shown.split())}: {first['msg'].lower()}"
            ) from error
        if further is not None:
            further(**{name: getattr(found, name) for name in inspect.signature(further).parameters})
        return {name: getattr(found, name) for name in arguments}

    @functools.wraps(command)
    def run(*positional: Parameters.args, **named: Parameters.kwargs) -> Made:
        call: Callable[..., Made] = command
        return call(**check(*positional, **named))

    run.check = check  # type: ignore[attr-defined]
    return run


def checked_with(
    further: Callable[..., object],
) -> Callable[[Callable[Parameters, Made]], Callable[Parameters, Made]]:
    """Returns the decorator `checked` with a function that checks how arguments fit together."""
    return lambda command: checked(command, further)


def selection(
    include: Sequence[str], exclude: Sequence[str], on_resize: Resize, key: str | None = None
) -> Selection:
    """Returns which tensors are taken. Raises: UsageError."""
    check_choice("--on-resize", on_resize, Resize)
    return Selection(tuple(include), tuple(exclude), on_resize, key)


def check_inputs_stay(output: Path, inputs: Iterable[str | Path | None]) -> None:
    """Checks that no input is the output or lies in it; an input may have the form `TASK=PATH`.

    Raises: InputError, whether the output may be replaced or not.
    """
    target = Path(os.path.realpath(output))
    for given in inputs:
        for text in (str(given), str(given).partition("=")[2]):
            place = Path(os.path.realpath(os.path.expanduser(text)))
            if text and os.path.exists(place) and target in (place, *place.parents):
                raise InputError(f"{output}: the input {given} is there; give another output")


def check_suffix(output: Path, suffix: str) -> None:
    """Raises: UsageError where an output's name does not end in a suffix."""
    if not output.name.endswith(suffix):
        raise UsageError(f"-o {output}: expected a file name that ends in {suffix}")


def check_picture(option: str, path: Path, overwrite: bool) -> None:
    """Raises: UsageError where a picture is asked for in a format that is not written; InputError.

    What comes before the drawing may take hours, so matplotlib is looked for here already.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"{option} {path}: expected a file name that ends in .png, the one format drawn")
    if find_spec("matplotlib") is None:
        raise InputError(f"{path}: drawing needs matplotlib; pip install 'flexswitch[eval]'")
    check_output(path, overwrite)


def new_task_name(name: str | None, output: Path) -> str:
    """Returns the given name, or else the output's stem. Raises: UsageError where it cannot name files."""
    chosen = task_name(output) if name is None else name
    try:
        return check_task_name(chosen)
    except ValueError as reason:
        raise UsageError(f"task name '{chosen}': {reason}; give one with --name") from reason
