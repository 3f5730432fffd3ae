"""Starts the `flexswitch` command; whatever it needs is imported where an interrupt ends it in one line."""

import os
import signal
import sys
from io import TextIOWrapper
from types import FrameType


def main() -> None:
    """Runs the command line and ends the process with one of the statuses of `ExitStatus`."""
    _open_streams()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from flexswitch.cli.app import run_app

        run_app()
    except KeyboardInterrupt:
        print("flexswitch: interrupted; nothing half-written is left", file=sys.stderr)
        sys.exit(130)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _open_streams() -> None:
    """Opens the standard streams that are closed, so that no file gets their numbers and all can be used."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # for good
        elif isinstance(stream := getattr(sys, name), TextIOWrapper) and mode == "w":
            stream.reconfigure(errors="backslashreplace")  # a text that the encoding lacks ends no command
