"""The help of a command: its options in groups, in lines that end between words."""

import re
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from flexswitch.cli.screen import ACCENT, BOLD, columns_of, styled, wrapped

_WIDEST = 100  # columns; longer lines are hard to read
_NAMES = 24  # columns of an option's name; a longer one stands in a line of its own
# The options of each group, in the order of the help; arguments are inputs.
GROUPS = {
    "Inputs": "base config task finetuned merged heads data exemplars per-task input limit max-length "
    "include exclude on-resize key",
    "Method": "method methods share to set set-for weight tune target-size budget rank extras codec effort "
    "adapter features feature-dtype normalise metric seed neighbours vote snap mix routing engine",
    "Steps": "dry-run check frozen force only keep-going",
    "Resources": "jobs memory device on address shard checkpoint-every resume lock-timeout",
    "Output": "output name dtype max-shard-size add remove storage report plot schema init overwrite",
    "Every command": "json quiet debug help",
}
# What an option takes, where it does not say so: a text by the option's name, the rest by type.
_TEXTS = {"base": "MODEL", "features": "SPEC", "methods": "NAMES", "routing": "NAMES", "address": "HOST:PORT"}
_TYPES = {"<int>": "N", "<int range>": "N", "<float>": "X", "<path>": "PATH"}


def group_of(parameter: Any) -> str:
    """Returns the group in which the help shows a parameter. Raises: ValueError where it is in none."""
    if parameter.param_type_name == "argument":
        return "Inputs"
    for group, names in GROUPS.items():
        if parameter.opts[0].removeprefix("--") in names.split():
            return group
    raise ValueError(f"{parameter.opts[0]} is in no group of cli/help.py")


class HelpfulCommand(TyperCommand):
    """A command whose help shows the options in groups."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help."""
        groups: dict[str, list[tuple[str, str]]] = {f"{group}:": [] for group in GROUPS}
        for parameter in self.get_params(ctx):
            groups[f"{group_of(parameter)}:"].append((_typed(parameter, ctx), _meaning(parameter, ctx)))
        entries = {title: found for title, found in groups.items() if found}
        formatter.write("\n".join([*_opening(self, ctx), *_sections(entries)]) + "\n")

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Returns what the usage shows: the arguments, the options that must be given, the others."""
        parameters = self.get_params(ctx)
        arguments = [each for each in parameters if each.param_type_name == "argument"]
        needed = [each for each in parameters if each not in arguments and each.required]
        shown = [
            _typed(each, ctx) if each.required else f"[{_typed(each, ctx)}]" for each in arguments
        ]  # fmt: skip
        return [*shown, *(_typed(each, ctx).removeprefix("-o, ") for each in needed), "[OPTIONS]"]


class HelpfulGroup(TyperGroup):
    """The program, whose help shows what each command is for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help."""
        commands = [(name, _paragraphs(command)[0]) for name, command in self.commands.items()]
        options = [(_typed(each, ctx), _meaning(each, ctx)) for each in self.get_params(ctx)]
        sections = [*_sections({"Commands:": commands}), *_sections({"Options:": options})]
        formatter.write("\n".join([*_opening(self, ctx), *sections]) + "\n")


def _typed(parameter: Any, ctx: typer.Context) -> str:
    """Returns a parameter as it is typed: `-o, --output PATH`."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    names = ", ".join(sorted(parameter.opts, key=len))
    if parameter.is_flag:
        return names
    kind = parameter.display_type(ctx)
    text = _TEXTS.get(parameter.name, "NAME")
    value = parameter.metavar or (text if kind == "<str>" else _TYPES.get(kind, kind.strip("<>")))
    return f"{names} {value}"


def _meaning(parameter: Any, ctx: typer.Context) -> str:
    """Returns what a parameter means, with its default and range."""
    meaning = parameter.get_help_record(ctx)[1]
    meaning = re.sub(r"\[default: \((.*?)\)([];])", r"[default: \1\2", meaning)
    return re.sub(r"x>=([\d.]+)\]$", r"at least \1]", meaning)


def _paragraphs(command: Any) -> list[str]:
    return [" ".join(text.split()) for text in (command.help or "").split("\n\n")]


def _opening(command: Any, ctx: typer.Context) -> list[str]:
    """Returns the usage and the paragraphs of the help; examples stay in one line, to be copied."""
    pieces = " ".join(command.collect_usage_pieces(ctx))
    usage, *more = wrapped(f"Usage: {ctx.command_path} {pieces}", _width(), "  ")
    lines = [styled("Usage:", BOLD, sys.stdout) + usage.removeprefix("Usage:"), *more]
    for text in _paragraphs(command):
        whole = text.startswith("Example: ")
        lines += ["", *(f"  {line}" for line in ([text] if whole else wrapped(text, _width() - 2)))]
    return lines


def _sections(parts: dict[str, list[tuple[str, str]]]) -> list[str]:
    """Returns the lines of sections: a title, and names with their meanings beside them."""
    lines = []
    names = min(_NAMES, max(len(name) for entries in parts.values() for name, _ in entries))
    for title, entries in parts.items():
        lines += ["", styled(title, BOLD, sys.stdout)]
        for name, meaning in entries:
            text = wrapped(meaning, _width() - names - 4)
            beside = "" if len(name) > names else " " * (names - len(name) + 2) + text.pop(0)
            lines.append(f"  {styled(name, ACCENT, sys.stdout)}{beside}")
            lines += [" " * (names + 4) + each for each in text]
    return lines


def _width() -> int:
    return min(_WIDEST, columns_of(sys.stdout))
