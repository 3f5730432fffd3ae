"""Runs fuzzed inputs and counts the outcomes, for python benchmarks/fuzz/run.py."""

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


class FindingError(BaseException):
    """A decoded tensor violates an invariant, or an input took too long; no reader may catch it."""


class Tally:
    """Counts the inputs of one target that were decoded or refused, and collects all other outcomes.

    findings: error and line of each kind of finding → number of inputs. The first input of each kind is saved
    in `folder`, together with its traceback.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self.name, self.folder = name, folder
        self.decoded = self.refused = 0
        self.findings: dict[str, int] = {}

    @property
    def counts(self) -> dict[str, int]:
        """Returns the number of inputs, in total and by outcome, and of different findings."""
        found = sum(self.findings.values())
        return {
            "inputs": self.decoded + self.refused + found,
            "decoded": self.decoded,
            "refused": self.refused,
            "findings": len(self.findings),
        }

    def run(self, target: Callable[[bytes], None], data: bytes, seconds: float = LIMIT_SECONDS) -> None:
        """Runs a target, which returns or raises a FlexswitchError; anything else is a finding."""
        try:
            with time_limit(seconds):
                target(data)
            self.decoded += 1
        except FlexswitchError:
            self.refused += 1
        except (Exception, FindingError) as error:
            self._note(error, data)

    def _note(self, error: BaseException, data: bytes) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        rooms = {"codecs", "merging", "recipes"}
        ours = [frame for frame in frames if rooms & set(Path(frame.filename).parts)] or frames
        key = f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
        self.findings[key] = self.findings.get(key, 0) + 1
        if self.findings[key] == 1 and self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            stem = f"{self.name}-{len(self.findings)}"
            (self.folder / f"{stem}.bin").write_bytes(data)
            (self.folder / f"{stem}.txt").write_text("".join(traceback.format_exception(error)))


@contextmanager
def time_limit(seconds: float = LIMIT_SECONDS) -> Iterator[None]:
    """Raises: FindingError if the block takes more processor time than `seconds`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _too_long(number: int, frame: object) -> None:
    raise FindingError("takes too long")


@contextmanager
def memory_limit() -> Iterator[None]:
    """Raises: MemoryError if the block needs more than `LIMIT_BYTES` of additional memory; Linux only."""
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
