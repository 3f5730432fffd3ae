"""Checks every device path against the CPU, times the device, and writes docs/benchmarks.md.

    python benchmarks/cuda/run.py -o cuda.json

One command of at most eight minutes for a machine with torch, triton and an NVIDIA GPU; it needs no network.
Every check runs in a process of its own: trouble on the device ends that check alone, and the JSON says how.
With --dry-run the same code runs on the CPU, with small sizes, and writes the JSON alone; Triton's
interpreter then runs the kernel. The exit status is 1 where a check failed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import routing
import switching
import torch
import training
import weights
from report import machine, table, write_section
from setting import Figures, Setting

BUDGET = 450.0  # seconds in all, so that a JSON is written within eight minutes


class Check(NamedTuple):
    """A check's code, and the most seconds that it may take."""

    run: Callable[[Setting], Figures]
    seconds: float = 90


CHECKS = {
    "decode": Check(weights.decode),
    "add a task": Check(weights.add),
    "restore": Check(weights.restored),
    "training step": Check(training.step),
    "features": Check(routing.features),
    "search": Check(routing.search),
    "switched model": Check(switching.switched),
    "speed of restoring": Check(weights.restore_speed, 120),
    "speed of a training step": Check(training.step_speed, 120),
    "speed of switching, 8 tasks": Check(partial(switching.switched_speed, tasks=8), 120),
    "speed of switching, 64 tasks": Check(partial(switching.switched_speed, tasks=64), 150),
}


class Outcome(NamedTuple):
    """status: passed, failed, or not run; reason: of the latter two; figures: those found before the end."""

    status: str
    seconds: float
    figures: dict[str, object]
    reason: str = ""


def outcome(name: str, is_dry: bool, work: Path, limit: float) -> Outcome:
    """Returns how one check went in a process of its own."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--only", name, "--work", str(work), *(["--dry-run"] * is_dry)]
    interpreted = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if is_dry else {}
    lines, errors = work / "lines", work / "errors"  # files, as what a killed process has written counts
    with lines.open("w") as out, errors.open("w") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=os.environ | interpreted)
        try:
            status, reason = process.wait(limit), _last_line(errors)
        except subprocess.TimeoutExpired:
            process.kill()
            status, reason = process.wait(), f"took more than {limit:.0f} s"
    figures = dict(json.loads(line) for line in lines.read_text().splitlines() if line.startswith('["'))
    seconds = round(time.perf_counter() - started, 1)
    return Outcome("failed", seconds, figures, reason) if status else Outcome("passed", seconds, figures)


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "the process ended without a word"


def run_all(names: Sequence[str], is_dry: bool, work: Path) -> dict[str, Outcome]:
    """Returns the outcomes of some checks, one after the other, within the budget."""
    started, found = time.perf_counter(), dict[str, Outcome]()
    for name in names:
        left = BUDGET - (time.perf_counter() - started)
        found[name] = (
            outcome(name, is_dry, work, min(left, CHECKS[name].seconds))
            if left > 10
            else Outcome("not run", 0, {}, "the time was up")
        )
        print(f"{name}: {found[name].status} in {found[name].seconds} s {found[name].reason}", flush=True)
    return found


def run_one(name: str, setting: Setting) -> None:
    """Prints each figure of a check as a line of JSON, as it is found."""
    for figure in CHECKS[name].run(setting):
        print(json.dumps(figure), flush=True)


def section(found: dict[str, Outcome], device: str) -> str:
    """Returns the section of docs/benchmarks.md."""
    rows = [
        [
            name,
            each.status,
            f"{each.seconds:.0f} s",
            figure,
            f"{value:.4g}" if isinstance(value, float) else f"{value}",
        ]
        for name, each in found.items()
        for figure, value in (each.figures or {each.reason: ""}).items()
    ]
    return f"""## On a GPU ({device})

    python benchmarks/cuda/run.py -o cuda.json

Device paths against the CPU's answers, then the speed of a synthetic model of 1 B weights. *Add a task* and
*restore* are equal bit for bit; a *difference* is the largest over the largest magnitude. Copies and
restoring count bytes read and written. Measured on {machine()}.

{table(["check", "", "time", "figure", "value"], rows)}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("cuda.json"), help="the JSON")
    parser.add_argument("--dry-run", action="store_true", help="the same code on the CPU, with small sizes")
    parser.add_argument("--checks", nargs="*", default=list(CHECKS), choices=list(CHECKS), metavar="NAME")
    parser.add_argument("--only", choices=list(CHECKS), help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        run_one(options.only, Setting("cpu" if options.dry_run else "cuda", options.work))
        return 0
    if not options.dry_run and not torch.cuda.is_available():
        print("torch finds no CUDA device here; --dry-run runs the same code on the CPU", file=sys.stderr)
        return 1
    device = "none, a dry run" if options.dry_run else torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as work:
        found = run_all(options.checks, options.dry_run, Path(work))
    document = {"device": device, "machine": machine()}
    document["checks"] = {name: each._asdict() for name, each in found.items()}
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    if not options.dry_run:
        write_section("cuda", section(found, device))
    return int(any(each.status == "failed" for each in found.values()))


if __name__ == "__main__":
    sys.exit(main())
