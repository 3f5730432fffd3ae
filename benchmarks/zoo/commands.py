"""Runs commands of flexswitch, with their times and their memory."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

_BETWEEN = 0.05  # seconds between two looks at a command's memory


class Ran(NamedTuple):
    """The seconds of a command, the largest memory of its process in bytes, and what it printed."""

    seconds: float
    memory: int
    output: str


def flexswitch(work: Path, *words: str) -> Ran:
    """Runs a command in a folder. Raises: SystemExit where it fails."""
    command = [sys.executable, "-m", "flexswitch.cli", *words]
    began, memory = time.perf_counter(), 0
    with (work / "output.txt").open("w+") as output:
        process = subprocess.Popen(command, cwd=work, stdout=output, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            memory = max(memory, _peak(process.pid))
            time.sleep(_BETWEEN)
        seconds = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(f"{' '.join(words)[:200]}: exit status {process.returncode}")
        output.seek(0)
        return Ran(seconds, memory, output.read())


def steps_done(ran: Ran) -> list[str]:
    """Returns the names of the steps that `run --json` did."""
    return [step["name"] for step in json.loads(ran.output)["steps"] if step["status"] == "done"]


def least(work: Path, *words: str, times: int = 5) -> float:
    """Returns the least seconds of a command that can be repeated."""
    return min(flexswitch(work, *words).seconds for _ in range(times))


def _peak(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
