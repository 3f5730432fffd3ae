"""Runs one fuzzed input and counts how it ended, for python benchmarks/fuzz/run.py."""

import resource
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flexswitch.codecs.errors import FlexswitchError

LIMIT_SECONDS = 5
LIMIT_BYTES = 2_000_000_000


class FindingError(Exception):
    """A decoded tensor breaks a promise, or an input took too long."""


class Tally:
    """How many inputs of one target were decoded or refused, and which ended otherwise.

    findings maps what distinguishes a finding, its error and the line it came from, to how often it came.
    The first input of each is kept in `folder`, beside a text that says what happened.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self.name, self.folder = name, folder
        self.decoded = self.refused = 0
        self.findings: dict[str, int] = {}

    @property
    def counts(self) -> dict[str, int]:
        """Returns the number of inputs, in all and by how they ended, and of different findings."""
        found = sum(self.findings.values())
        return {
            "inputs": self.decoded + self.refused + found,
            "decoded": self.decoded,
            "refused": self.refused,
            "findings": len(self.findings),
        }

    def run(self, target: Callable[[bytes], None], data: bytes) -> None:
        """Runs a target, which ends quietly or with a FlexswitchError; anything else is a finding."""
        try:
            with time_limit():
                target(data)
            self.decoded += 1
        except FlexswitchError:
            self.refused += 1
        except (Exception, MemoryError) as error:
            self._note(error, data)

    def _note(self, error: Exception, data: bytes) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "codecs" in Path(frame.filename).parts] or frames
        key = f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
        self.findings[key] = self.findings.get(key, 0) + 1
        if self.findings[key] == 1 and self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            stem = f"{self.name}-{len(self.findings)}"
            (self.folder / f"{stem}.bin").write_bytes(data)
            (self.folder / f"{stem}.txt").write_text("".join(traceback.format_exception(error)))


@contextmanager
def time_limit() -> Iterator[None]:
    """Raises a FindingError in a block that takes more processor time than an input may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _too_long(number: int, frame: object) -> None:
    raise FindingError(f"takes more than {LIMIT_SECONDS} s")


@contextmanager
def memory_limit() -> Iterator[None]:
    """Raises a MemoryError in a block that needs more memory than an input may, beside what is taken now.

    Only Linux tells what is taken; elsewhere there is no limit.
    """
    taken = Path("/proc/self/statm")
    if not taken.exists():
        yield
        return
    before, pages = resource.getrlimit(resource.RLIMIT_AS), int(taken.read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + LIMIT_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
