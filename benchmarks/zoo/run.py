"""Measures recipes and zoos of many small checkpoints, and writes their section of docs/benchmarks.md.

    python benchmarks/zoo/run.py --tasks 1000

The checkpoints, 2.1 MB each, and all that is made of them take 4 GB under --work. A shell loop of the same
commands is timed on a few tasks and stands for all in proportion.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from commands import flexswitch, steps_done
from growth import adding, answers, growth
from models import write_models
from overhead import overhead, planning
from report import machine, table, write_section
from ways import ways

_LOOPED = 5  # tasks that the shell loop compresses
_WAYS = 40  # tasks of the recipe that is run in several ways


def recipe(work: Path) -> list[list[str]]:
    """Runs the recipe, and again after nothing and after one input has changed; returns rows of a table."""
    whole = flexswitch(work, "run", "zoo.yaml", "--jobs", "2", "--json")
    again = flexswitch(work, "run", "zoo.yaml", "--json")
    check = flexswitch(work, "run", "zoo.yaml", "--check", "--json")
    shutil.copy(work / "models" / "t1.safetensors", work / "models" / "t0.safetensors")
    changed = flexswitch(work, "run", "zoo.yaml", "--json")
    bare, step = overhead(work)
    return [
        ["the whole recipe, 2 processes", f"{whole.seconds:.1f} s, {len(steps_done(whole))} steps"],
        ["memory of the driver", f"{whole.memory / 1e6:.0f} MB"],
        ["again, nothing to do", f"{again.seconds:.2f} s, {len(steps_done(again))} steps"],
        ["`--check`", f"{check.seconds:.2f} s"],
        ["one input changed", f"{changed.seconds:.1f} s: {', '.join(steps_done(changed))}"],
        ["a bare `compress`, and a step of it", f"{bare * 1e3:.0f} ms, {step * 1e3:.0f} ms"],
        ["planning 10,000 steps", f"{planning(work, 10_000):.1f} s"],
    ]


def shell_loop(work: Path, tasks: int) -> float:
    """Returns the seconds of a shell loop over all tasks, from a few of them, and of `pack` and `verify`."""
    (work / "looped").mkdir()
    loop = sum(
        flexswitch(
            work, "compress", f"models/t{number}.safetensors", "--base", "base", "-o", f"looped/t{number}.fsw"
        ).seconds
        for number in range(_LOOPED)
    )
    packed = flexswitch(
        work, "pack", *(f"artifacts/t{number}.fsw" for number in range(tasks)), "-o", "looped/zoo"
    )
    return loop / _LOOPED * tasks + packed.seconds + flexswitch(work, "verify", "looped/zoo").seconds


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--large", type=int, default=8000, help="tasks of the zoo that one is added to")
    parser.add_argument("--work", type=Path, default=Path("build/zoo"))
    options = parser.parse_args()
    work = options.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    write_models(work, options.tasks)
    load = os.getloadavg()[0]
    rows = recipe(work)
    loop = ["the same commands in a shell loop", f"{shell_loop(work, options.tasks):.0f} s"]
    sizes = [options.tasks // 4, options.tasks // 2, options.tasks]
    grown = growth(work, sizes)
    parts = [
        f"## A zoo from one file\n\n`python benchmarks/zoo/run.py --tasks {options.tasks}`: {machine()}; "
        f"load average {load:.1f} before. {options.tasks:,} checkpoints of 2.1 MB, 68 tensors each.",
        table(["recipe", "time"], [*rows, loop]),
        "Seconds of a whole command by the number of tasks; indexed by ten pictures of each.",
        table(["tasks", "pack", "verify", "index, Euclidean", "index, learned"], grown),
        f"One task more for a zoo of {options.large:,} (`pack --add`): "
        f"{adding(work, options.large, options.tasks):.2f} s.",
        "Seconds of a whole command on three tasks, the least of five:",
        table(["command", "seconds"], answers(work)),
        f"The recipe on {_WAYS} tasks in several ways. A step counts as done when its run says so; outputs "
        "and lock are compared byte for byte.",
        table(["way", "steps done", "done again", "bytes"], ways(work, _WAYS)),
    ]
    print("\n\n".join(parts))
    write_section("zoo", "\n\n".join(parts))


if __name__ == "__main__":
    main()
