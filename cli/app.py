"""The `flexswitch` command: its subcommands, and how errors are printed."""

import sys
import traceback
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from flexswitch.cli.compress import compress
from flexswitch.cli.eval import evaluate
from flexswitch.cli.export import export
from flexswitch.cli.extract import extract
from flexswitch.cli.help import HelpfulCommand, HelpfulGroup
from flexswitch.cli.index import index
from flexswitch.cli.inspect import inspect
from flexswitch.cli.merge import merge
from flexswitch.cli.methods import methods
from flexswitch.cli.pack import pack
from flexswitch.cli.printable import make_libraries_printable, printable
from flexswitch.cli.push import push
from flexswitch.cli.route import route
from flexswitch.cli.run import run
from flexswitch.cli.screen import tell
from flexswitch.cli.verify import verify
from flexswitch.codecs.errors import ExitStatus, FlexswitchError

app = typer.Typer(
    cls=HelpfulGroup,
    name="flexswitch",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        from flexswitch.cli.versions import version_lines

        print("\n".join(version_lines()))
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the versions.")
    ] = False,
) -> None:
    """Turn fine-tuned checkpoints into tiny task vectors, and put them back together."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(ExitStatus.USAGE)


_COMMANDS: dict[str, Callable[..., object]] = {
    "extract": extract, "compress": compress, "pack": pack, "index": index, "merge": merge, "route": route,
    "eval": evaluate, "inspect": inspect, "verify": verify, "export": export, "methods": methods, "run": run,
    "push": push,
}  # fmt: skip
for _name, _function in _COMMANDS.items():
    app.command(_name, cls=HelpfulCommand)(_function)


def run_app() -> None:
    """Runs the command line and ends the process with one of the statuses of `ExitStatus`."""
    make_libraries_printable()
    try:
        outcome = app(standalone_mode=False)
    except FlexswitchError as error:
        _fail(str(error), error.status)
    except typer.TyperException as error:
        _fail_on_usage(error)
    except (OSError, MemoryError) as error:
        _fail(_system_message(error), ExitStatus.INPUT)
    if isinstance(outcome, int):  # the status of a command that ended early, as with --help
        if outcome == ExitStatus.INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(outcome)


def _fail(message: str, status: ExitStatus) -> NoReturn:
    if "--debug" in sys.argv:
        _print_lines(traceback.format_exc())
    tell(f"error: {message}")
    sys.exit(status)


def _fail_on_usage(error: typer.TyperException) -> NoReturn:
    """Ends with one line on a wrong use of the command line, and where to read the right one."""
    message = " ".join(error.format_message().split()).replace("Value error, ", "").rstrip(".")
    context = getattr(error, "ctx", None)
    see = " See" if message.endswith("?") else "; see"
    advice = "" if context is None else f"{see} {context.command_path} --help"
    tell(f"error: {message[:1].lower()}{message[1:]}{advice}")
    sys.exit(error.exit_code)


def _print_lines(text: str) -> None:
    print("\n".join(map(printable, text.rstrip("\n").split("\n"))), file=sys.stderr)


def _system_message(error: OSError | MemoryError) -> str:
    """Returns one line for an error of the operating system: the file first, where one is known."""
    if isinstance(error, MemoryError):
        return "the memory is full; free some, or use a machine with more"
    named = f"{error.filename}: " if error.filename else ""
    return f"{named}{error.strerror or error}"
