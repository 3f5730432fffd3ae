"""The commands that steps of a recipe call: their arguments, checked by their own model, and their paths."""

import importlib
import inspect
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, get_args, get_origin

from flexswitch.codecs.errors import InputError, UnusedOptionError, UsageError, unknown_name
from flexswitch.codecs.format.named_path import split_named_path

# Options that do not change the bytes of an output; they are no part of what a step is.
WITHOUT_EFFECT = ("jobs", "memory", "overwrite", "resume", "checkpoint-every", "lock-timeout")
_RENAMED = {"set": "settings", "weight": "weights"}


@dataclass(frozen=True)
class Command:
    """A command: its name, its function and the function of its result, as "module:function"."""

    name: str
    function: str
    result: str

    @cached_property
    def call(self) -> Callable[..., Any]:
        """The command's function."""
        return _load(self.function)

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The function's parameters by name, without the reporter."""
        found = dict(inspect.signature(self.call).parameters)
        found.pop("reporter", None)
        return found

    @cached_property
    def inputs(self) -> list[str]:
        """The names of the arguments that a step's inputs are; the last one may take several."""
        positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return [
            name for name, each in self.parameters.items() if each.kind is positional and name != "output"
        ]

    @cached_property
    def options(self) -> dict[str, str]:
        """The names of the options, and the arguments that they are."""
        texts = {argument: option for option, argument in _RENAMED.items()}
        return {
            texts.get(name, name.replace("_", "-")): name
            for name in self.parameters
            if name not in self.inputs
        }

    @cached_property
    def accesses(self) -> dict[str, Any]:
        """The marks of the arguments that hold paths."""
        marks = {name: next(_marks(each.annotation), None) for name, each in self.parameters.items()}
        return {name: mark for name, mark in marks.items() if mark is not None}

    def result_of(self, made: object) -> dict[str, Any]:
        """Returns the JSON document of what the function returned."""
        document: dict[str, Any] = _load(self.result)(made)
        return document


_COMMANDS = "flexswitch.merging.commands"
COMMANDS = {
    name: Command(name, f"{_COMMANDS}.{module}:{module}", f"{_COMMANDS}.results:{result}")
    for name, module, result in (
        ("extract", "extract", "extracted"),
        ("compress", "compress", "compressed"),
        ("pack", "pack", "packed"),
        ("index", "index", "indexed"),
        ("merge", "merge", "merged"),
        ("eval", "evaluate", "evaluated"),
        ("verify", "verify", "verified"),
        ("push", "push", "pushed"),
    )
}


@cache
def _load(path: str) -> Callable[..., Any]:
    module, name = path.split(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return loaded


def get_command(name: str) -> Command:
    """Returns a command. Raises: InputError naming the nearest."""
    if name not in COMMANDS:
        raise InputError(unknown_name("subcommand", name, COMMANDS))
    return COMMANDS[name]


def arguments_of(command: Command, inputs: list[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a command's arguments by name. Raises: InputError on unknown options and missing inputs."""
    for option in options:
        if option not in command.options:
            raise InputError(unknown_name(f"option of {command.name}", option, command.options))
    arguments: dict[str, Any] = {}
    rest = list(inputs)
    for name in command.inputs:
        if _takes_several(command, name):
            arguments[name], rest = rest, []
        elif rest:
            arguments[name] = rest.pop(0)
    lacking = [name for name in command.inputs if not arguments.get(name) and not _optional(command, name)]
    if rest or (lacking and not options.get("remove")):
        wanted = ", ".join(name.upper() for name in command.inputs)
        raise InputError(f"'inputs' is a list of {len(inputs)}, expected {wanted}")
    arguments |= {command.options[option]: value for option, value in options.items()}
    for name, each in command.parameters.items():
        if each.default is each.empty and name not in arguments:
            raise InputError(f"lacks the option '{name.replace('_', '-')}' of {command.name}")
    return arguments


def check_arguments(command: Command, arguments: Mapping[str, Any]) -> None:
    """Checks the arguments by the model of the command's own. Raises: InputError."""
    try:
        command.call.check(**arguments)  # type: ignore[attr-defined]
    except UsageError as reason:
        raise InputError(str(reason)) from reason


def options_key(command: Command, options: Mapping[str, Any]) -> str:
    """Returns a text that is the same for options which differ in their paths alone."""
    found = {
        name: None if command.options.get(name) in command.accesses else value
        for name, value in options.items()
    }
    return f"{command.name} {sorted(found.items(), key=repr)}"


def unused_options(command: Command, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns options that would do nothing beside the others, as the command's own check finds them."""
    try:
        check_arguments(command, arguments)
    except InputError as reason:
        return reason.__cause__.options if isinstance(reason.__cause__, UnusedOptionError) else ()
    return ()


def paths_of(command: Command, arguments: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """Returns the paths that a call reads, writes anew and changes, each once."""
    found: dict[str, list[str]] = {"reads": [], "writes": [], "changes": []}
    for name, access in command.accesses.items():
        if (value := arguments.get(name)) is None:
            continue
        kind = "changes" if any(arguments.get(each) for each in access.changed_with) else access.kind
        entries = value.values() if isinstance(value, dict) else value
        entries = [entries] if isinstance(entries, str | int | float) else list(entries)
        if not all(isinstance(each, str) for each in entries):
            raise InputError(f"'{name.replace('_', '-')}' is {value!r}, expected a path (put it in quotes)")
        paths = [_path(each) if access.named else each for each in entries]
        found[kind] += [each for each in paths if str(each).endswith(access.suffix)]
    reads, writes, changes = (list(dict.fromkeys(each)) for each in found.values())
    return reads, writes, changes


def _marks(annotation: Any) -> Iterator[Any]:
    from flexswitch.merging.commands.arguments import Access

    if isinstance(annotation, Access):
        yield annotation
    elif get_origin(annotation) is not None:
        for part in get_args(annotation):
            yield from _marks(part)


def _path(text: str) -> str:
    """Returns the path of TASK=PATH, or else the text."""
    return split_named_path(text)[1]


def command_line(command: Command, inputs: list[str], options: Mapping[str, Any]) -> str:
    """Returns a step's command line, without the options that change no output."""
    words = ["flexswitch", command.name, *inputs]
    for option, value in options.items():
        if option in WITHOUT_EFFECT or value is False:
            continue
        if value is True:
            words.append(f"--{option}")
            continue
        if isinstance(value, dict):
            value = [f"{key}={_text(entry)}" for key, entry in value.items()]
        for entry in value if isinstance(value, list) else [value]:
            words += [f"--{option}", _text(entry)]
    return shlex.join(words)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _takes_several(command: Command, name: str) -> bool:
    from collections.abc import Sequence

    return get_origin(command.parameters[name].annotation) is Sequence


def _optional(command: Command, name: str) -> bool:
    return command.parameters[name].default is not inspect.Parameter.empty
