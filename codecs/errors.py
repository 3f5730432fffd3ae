"""The errors of flexswitch and the exit status each one ends with.

FlexswitchError
├── InputError            1  the input is wrong
│   ├── TargetSizeError   1  a target size is too small for any artifact
│   └── NotByRowsError    1  a layer cannot answer each row of a batch under its own mixture
├── UsageError            2  the command was used wrongly
│   └── UnusedOptionError 2  an option would do nothing
├── ArtifactError         3  an artifact is corrupt or fails verification
│   └── DecodeError       3  the bytes of one tensor do not decode
└── ExpectationError      4  a recipe's expectation is not met
"""

import difflib
from collections.abc import Iterable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import get_args


class ExitStatus(IntEnum):
    """The exit status of the process; scripts rely on these numbers."""

    DONE = 0
    INPUT = 1
    USAGE = 2
    ARTIFACT = 3
    EXPECTATION = 4
    INTERRUPTED = 130


class FlexswitchError(Exception):
    """An error that the user can fix: one line that says what was found, what was expected and what to do."""

    status = ExitStatus.INPUT


class InputError(FlexswitchError):
    """An input file, folder or value is not what the command needs."""


class TargetSizeError(InputError):
    """A target size is too small for the task's own tensors, the header and some entries."""


class NotByRowsError(InputError):
    """A layer cannot answer each row of a batch under its own mixture of tasks."""


class UsageError(FlexswitchError):
    """An option or setting does not exist or is out of range."""

    status = ExitStatus.USAGE


class UnusedOptionError(UsageError):
    """Options would do nothing. options: their names on the command line, without dashes."""

    def __init__(self, options: Sequence[str], reason: str) -> None:
        super().__init__(f"{', '.join(f'--{option}' for option in options)}: {reason}")
        self.options = tuple(options)


class ArtifactError(FlexswitchError):
    """A file written by flexswitch is damaged, was changed, or fails verification."""

    status = ExitStatus.ARTIFACT


class DecodeError(ArtifactError):
    """The stored bytes of a tensor have a wrong length, count or content."""


class ExpectationError(FlexswitchError):
    """A recipe ran, and one of its expectations was not met."""

    status = ExitStatus.EXPECTATION


def not_found(path: str | Path, expected: str) -> str:
    """Returns what is wrong where no file is: none is there, or something else. expected: what ought to be.

    >>> not_found("sst2.fsw", "an artifact"), not_found(".", "an artifact")
    ('sst2.fsw: no such file; expected an artifact', '.: is a folder; expected an artifact')
    """
    return f"{path}: {'is a folder' if Path(path).is_dir() else 'no such file'}; expected {expected}"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Returns the message for an unknown name, with the closest known name as a suggestion."""
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
    return f"no {kind} is named '{name}'{hint} (known: {', '.join(names) or 'none'})"


def check_choice(option: str, value: str, choices: object) -> None:
    """Raises: UsageError where a value is none of a `Literal`'s choices."""
    if value not in get_args(choices):
        raise UsageError(f"{option} '{value}': expected one of {', '.join(get_args(choices))}")
