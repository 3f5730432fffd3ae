"""What every subcommand has: the options --json, --quiet and --debug."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from flexswitch.cli.console import Console

_SHARED: dict[str, Any] = {
    "json": Annotated[bool, typer.Option("--json", help="Print a JSON document on stdout.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress and no notes.")],
    "debug": Annotated[bool, typer.Option("--debug", help="On an error print the traceback too.")],
}


def command(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Returns a subcommand with the shared options; its first argument becomes the console they make."""

    @functools.wraps(function)
    def run(*, json: bool, quiet: bool, debug: bool, **options: Any) -> dict[str, Any]:
        return function(Console(quiet, json), **options)

    _, *own = inspect.signature(function).parameters.values()
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in _SHARED.items()
    ]
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own] + shared
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def given_options(context: typer.Context) -> list[str]:
    """Returns the options that the command line gives, as they are typed, in the order of the help."""
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name is not None
        and getattr(context.get_parameter_source(parameter.name), "name", "") == "COMMANDLINE"
        and parameter.opts[0].startswith("-")
    ]
