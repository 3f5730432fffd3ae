"""Makes the site's pages of reference from the program: commands, settings of methods, public names."""

import html
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import typer

import flexswitch
from flexswitch.cli.app import app
from flexswitch.merging.methods.registry import METHODS
from flexswitch.merging.methods.settings import describe_settings

_SHARED = ("--json", "--quiet", "--debug", "--help")
_EXAMPLE = "Example: "


def commands_page() -> str:
    """Returns the reference of all commands."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group, as the app has several commands
    shared = _rows(next(iter(commands.values())), lambda each: each.opts[0] in _SHARED)
    parts = [
        "# Commands",
        "`flexswitch COMMAND --help` prints the same. Every command has these options too:",
        _table(("option", "meaning"), shared),
        "Exit status: 0 done, 1 the input is wrong, 2 wrong usage, 3 an artifact is corrupt, 4 a recipe's "
        "expectation is not met, 130 interrupted.",
    ]
    for name, command in commands.items():
        texts = inspect.cleandoc(command.help or "").split("\n\n")
        examples = [each.removeprefix(_EXAMPLE) for each in texts if each.startswith(_EXAMPLE)]
        usage = command.get_usage(command.context_class(command, info_name=f"flexswitch {name}"))
        parts += [f"## {name}", *(_plain(each) for each in texts if not each.startswith(_EXAMPLE))]
        parts.append(f"```text\n{usage}\n```")
        if examples:
            parts.append("```sh\n" + "\n".join(" ".join(each.split()) for each in examples) + "\n```")
        parts += _tables_of_options(command)
    return "\n\n".join(parts) + "\n"


def settings_page() -> str:
    """Returns the settings of all methods, as `flexswitch methods NAME` prints them."""
    parts = ["# Settings of methods", "`flexswitch methods NAME` prints the same for one method."]
    for method in METHODS:
        settings = describe_settings(method)
        needs = ", ".join(method.needs)
        parts += [f"## {method.name}", _plain(f"{method.kind}; needs {needs}; {method.source}")]
        rows = [
            (f"`{each.name}`", "none" if each.default is None else f"`{each.default}`",
             _plain(each.expected), _plain(each.meaning))
            for each in settings
        ]  # fmt: skip
        parts.append(_table(("setting", "default", "values", "meaning"), rows) if rows else "No settings.")
    return "\n\n".join(parts) + "\n"


def api_page() -> str:
    """Returns the reference of the public names. Raises: ValueError where one has no docstring."""
    if missing := list(undocumented()):
        raise ValueError(f"without a docstring: {', '.join(missing)}")
    parts = ["# Python", _plain(inspect.cleandoc(flexswitch.__doc__ or ""))]
    for name in flexswitch.__all__:
        home = getattr(flexswitch, name).__module__
        shown = f"heading: flexswitch.{name}\n      toc_label: {name}\n      show_root_toc_entry: true"
        parts.append(f"::: {home}.{name}\n    options:\n      {shown}")
    return "\n\n".join(parts) + "\n"


def undocumented() -> Iterator[str]:
    """Yields the public names, and the public members of public classes, that have no docstring."""
    for name in flexswitch.__all__:
        value = getattr(flexswitch, name)
        members = vars(value) if inspect.isclass(value) else {}
        for member, found in {"": value, **members}.items():
            called = callable(found) or isinstance(found, property | classmethod | staticmethod)
            if called and not member.startswith("_") and not inspect.getdoc(found):
                yield f"flexswitch.{name}.{member}".removesuffix(".")


def _tables_of_options(command: Any) -> Iterator[str]:
    """Yields a table of the arguments, and one of the options of each panel of the help."""
    arguments = _rows(command, lambda each: each.param_type_name == "argument")
    if arguments:
        yield _table(("argument", "meaning"), arguments)
    for panel in dict.fromkeys(each.rich_help_panel for each in command.params):
        options = _rows(
            command,
            lambda each, panel=panel: (
                each.param_type_name == "option"
                and each.rich_help_panel == panel
                and each.opts[0] not in _SHARED
            ),
        )
        if options:
            yield _table((panel or "option", "meaning"), options)


def _rows(command: Any, wanted: Callable[[Any], bool]) -> list[tuple[str, str]]:
    context = command.context_class(command, info_name=command.name)
    found = [each.get_help_record(context) for each in command.get_params(context) if wanted(each)]
    return [(f"`{record[0]}`", _plain(record[1])) for record in found if record]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Returns text of the program as Markdown that shows it as it is: patterns and <names> are no markup."""
    pieces = re.split(r"(`[^`]+`)", " ".join(text.split()))
    for index in range(0, len(pieces), 2):
        shown = html.escape(pieces[index], quote=False).replace("|", "&#124;")
        pieces[index] = re.sub(r"([*_\[\]\\])", r"\\\1", shown)
    return "".join(pieces)
