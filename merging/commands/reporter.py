"""How a command tells its progress; the command line prints it, and the library stays silent."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable


@runtime_checkable
class Reporter(Protocol):
    """Receives a command's notes and its progress."""

    def note(self, text: str) -> None:
        """Receives a line that the user should know."""

    def progress(self, what: str, total: int) -> AbstractContextManager[Callable[[str], None]]:
        """Returns a context whose function is called with the name of each finished item."""

    def steps(self, what: str, total: int) -> AbstractContextManager[Callable[[int, str], None]]:
        """Returns a context whose function is called after each step, with their number and the state."""


class Silent:
    """Reports nothing."""

    def note(self, text: str) -> None:
        """Ignores a note."""

    def progress(self, what: str, total: int) -> AbstractContextManager[Callable[[str], None]]:
        """Returns a context whose function does nothing."""
        return nullcontext(lambda item: None)

    def steps(self, what: str, total: int) -> AbstractContextManager[Callable[[int, str], None]]:
        """Returns a context whose function does nothing."""
        return nullcontext(lambda done, state: None)


SILENT = Silent()


def counted(count: int, noun: str) -> str:
    """Returns a number of things in words.

    >>> counted(1, "task"), counted(2000, "task")
    ('1 task', '2,000 tasks')
    """
    return f"{count:,} {noun}" + "s" * (count != 1)
