"""Runs commands in forked processes that are killed, raced, or left to end, and compares what they leave.

`python -m support.attacks kills 500 races 200 reads 100`, in `tests/`, prints for each a line of JSON with what was
tried and what failed. The process that forks runs one thread, and has everything loaded.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.update(
    OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false"
)

STEPS = (
    "open",
    "os.",
    "shutil.",
    "fcntl.",
)  # the audit events of a file system, at which a process is killed
Files = dict[str, bytes]


class Ending(NamedTuple):
    """How a process ended: by itself with status 0 and no message, by an error, or killed (status None)."""

    status: int | None
    message: str = ""
    steps: int = 0
    seconds: float = 0.0


class Started:
    """A forked process that runs a function.

    kill_at: the step of the file system at which it sends itself a signal.
    """

    def __init__(
        self, function: Callable[[], object], kill_at: int | None = None, by: signal.Signals = signal.SIGKILL
    ) -> None:
        self._began = time.perf_counter()
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(writer)
            return
        os.close(self._reader)
        steps = [0]

        def count(event: str, _: object) -> None:
            if event.startswith(STEPS) and event != "os.kill":
                steps[0] += 1
                if steps[0] == kill_at:
                    os.kill(os.getpid(), by)

        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.addaudithook(count)
        message = ""
        try:
            function()
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
            if os.environ.get("FLEXSWITCH_TRACE"):
                traceback.print_exc()
        counted = steps[0]
        os.write(writer, json.dumps([message[:3000], counted]).encode())
        os._exit(1 if message else 0)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> Ending:
        said = b""
        while chunk := os.read(self._reader, 65536):
            said += chunk
        os.close(self._reader)
        _, status = os.waitpid(self.pid, 0)
        seconds = time.perf_counter() - self._began
        if os.WIFSIGNALED(status):
            return Ending(None, "killed", 0, seconds)
        message, steps = json.loads(said)
        return Ending(os.WEXITSTATUS(status), message, steps, seconds)


def run(function: Callable[[], object]) -> Ending:
    """Runs a function in a forked process and waits for its end."""
    return Started(function).wait()


def listing(folder: Path) -> Files:
    """Returns all that lies below a folder, but the locks of zoos; folders count as empty files."""
    found = [path for path in sorted(folder.rglob("*")) if path.name != ".lock" or path.is_dir()]
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in found}


def state(path: Path) -> Files | None:
    """Returns what a reader sees of an output: of a zoo, zoo.json and the files that it names."""
    from flexswitch.codecs.format.zoo import ZOO_FILE, open_zoo

    if not path.exists():
        return None
    if path.is_file():
        return {"": path.read_bytes()}
    if not (path / ZOO_FILE).exists():
        return listing(path)
    zoo = open_zoo(path)
    index = zoo.record.index
    files = [ZOO_FILE, *(task.file for task in zoo.record.tasks.values()), *([index.file] if index else [])]
    return {file: (path / file).read_bytes() for file in files}


def draws(tries: int) -> Iterator[tuple[int, random.Random]]:
    """Yields the number of each try and its generator, which `FLEXSWITCH_SEED` changes."""
    for number in range(tries):
        yield number, random.Random(f"{os.environ.get('FLEXSWITCH_SEED', 0)}/{number}")


def main(arguments: list[str]) -> None:
    """Prints the tries and failures of each kind of attack as a line of JSON."""
    from support import attack_kills, attack_races

    for kind, tries in zip(arguments[::2], map(int, arguments[1::2]), strict=True):
        if kind == "kills":
            found = attack_kills.attack(tries)
        elif kind == "races":
            found = attack_races.attack(tries)
        else:
            from support import attack_reads  # loads transformers

            found = attack_reads.attack(tries)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
