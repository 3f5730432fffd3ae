"""Runs one step with a log of its own, and tells how it goes."""

import re
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from flexswitch.codecs.errors import ExitStatus, FlexswitchError
from flexswitch.recipes.digests import Digests
from flexswitch.recipes.execute import Done, Task, execute

_BETWEEN_REPORTS = 0.2  # seconds


@dataclass(frozen=True)
class Failure:
    """Why a step failed, in one line, and the exit status of that."""

    message: str
    status: int


@dataclass(frozen=True)
class Event:
    """Something that a step tells. seconds: how long it ran, once it has ended."""

    number: int
    news: Done | Failure | str
    seconds: float = 0.0


def log_folder(lock: Path) -> Path:
    """Returns the folder of the steps' logs."""
    return lock.with_suffix(".logs")


def log_file(lock: Path, number: int, name: str) -> Path:
    """Returns the log of a step by its position in the plan and its name."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "step"
    return log_folder(lock) / f"{number + 1:04}-{slug}.log"


def open_log(task: Task) -> FileIO:
    """Opens a task's log, a new file even where a link has its name.

    It is not buffered: what a full disk refuses is not tried again when it is closed.
    """
    path = log_file(task.lock, task.number, task.step.name)
    path.unlink(missing_ok=True)
    return path.open("wb", buffering=0)


def run_step(task: Task, digests: Digests, log: FileIO, tell: Callable[[Event], None]) -> Event:
    """Runs a step; returns the event of its end. Only an interrupt is raised."""
    began = time.monotonic()
    reporter = _StepReporter(log, lambda text: tell(Event(task.number, text)))
    reporter.log(f"$ {task.step.line}")
    news: Done | Failure
    try:
        news = execute(task, reporter, digests)
    except FlexswitchError as error:
        news = Failure(" ".join(str(error).split("\n")), int(error.status))
    except (OSError, MemoryError) as error:
        news = Failure(_system_message(error), int(ExitStatus.INPUT))
    except Exception as error:  # a fault of flexswitch or of a library: the log has the traceback
        reporter.log(traceback.format_exc())
        news = Failure(f"{type(error).__name__}: {error}", int(ExitStatus.INPUT))
    reporter.log(news.message if isinstance(news, Failure) else "done")
    return Event(task.number, news, time.monotonic() - began)


def _system_message(error: OSError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return "the memory is full; run fewer steps at once (--jobs)"
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


class _StepReporter:
    """Writes notes to a log, and tells how far the command has come."""

    def __init__(self, log: FileIO, tell: Callable[[str], None]) -> None:
        self._log, self._tell = log, tell
        self._last = 0.0

    def log(self, text: str) -> None:
        """Writes a line to the log. A full disk leaves it out: the step itself says what fails."""
        with suppress(OSError):
            self._log.write(f"{text}\n".encode(errors="replace"))

    def note(self, text: str) -> None:
        """Writes a note."""
        self.log(text)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[str], None]]:
        """Yields a function to call with the name of each finished item."""
        self.log(what)
        done = 0

        def advance(item: str) -> None:
            nonlocal done
            done += 1
            self._report(f"{done}/{total} {item}" if total else item)

        yield advance

    @contextmanager
    def steps(self, what: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """Yields a function to call after each step of a training, with their number and the state."""
        if total:
            self.log(what)
        yield lambda done, state: self._report(f"step {done}/{total} {state}")

    def _report(self, text: str) -> None:
        if (now := time.monotonic()) - self._last >= _BETWEEN_REPORTS:
            self._last = now
            self._tell(text)
