"""`flexswitch methods`: every method, or one method's settings."""

from typing import Annotated, Any

import typer

from flexswitch.cli.command import command
from flexswitch.cli.console import Console, table
from flexswitch.cli.options import completing
from flexswitch.cli.table import Table
from flexswitch.merging.methods.registry import METHODS, Method


@command
def methods(
    console: Console,
    name: Annotated[
        str | None,
        typer.Argument(
            help="Show this method's settings.",
            show_default=False,
            autocompletion=completing(each.name for each in METHODS),
        ),
    ] = None,
) -> dict[str, Any]:
    """List the methods that compress and merge: what each needs, its settings and its source.

    Example: flexswitch methods

    Example: flexswitch methods t-switch
    """
    if name is None:
        return console.result({"methods": [_record(method) for method in METHODS]}, _listed())
    from flexswitch.codecs.errors import UsageError, unknown_name

    found = [method for method in METHODS if method.name == name]
    if not found:
        raise UsageError(unknown_name("method", name, [method.name for method in METHODS]))
    return _one(console, found[0])


def _listed() -> Table:
    rows = table("", "method", "kind", "needs", "source", left=4, prose=("needs", "source"))
    for method in METHODS:
        rows.add_row(method.name, method.kind, ", ".join(method.needs), method.source)
    return rows


def _one(console: Console, method: Method) -> dict[str, Any]:
    """Prints a method with its settings; returns the JSON document."""
    from flexswitch.merging.methods.settings import describe_settings

    settings = describe_settings(method)
    head = f"{method.name}: {method.kind}, needs {', '.join(method.needs)}; {method.source}"
    document = _record(method) | {"settings": [setting._asdict() for setting in settings]}
    if not settings:
        return console.result(document, head, "It has no settings.")
    rows = table("", "setting", "default", "values", "meaning", left=4, prose=("values", "meaning"))
    for setting in settings:
        default = "none" if setting.default is None else str(setting.default)
        rows.add_row(setting.name, default, setting.expected, setting.meaning)
    return console.result(document, head, rows)


def _record(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "kind": method.kind,
        "needs": list(method.needs),
        "source": method.source,
    }
