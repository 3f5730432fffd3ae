"""Measures commands where nothing is compiled yet, and again, and writes their section of docs/benchmarks.md.

    python examples/digits/train.py --out build/digits
    python benchmarks/first_call/run.py --models build/digits

Each command starts with an empty folder for numba's machine code. All are timed beside nothing else.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from report import machine, table, write_section

TASKS = ("turned", "negative")
_ROUNDS = 3


def commands(models: Path) -> dict[str, list[str]]:
    """Returns the commands that are timed, by what the table calls them; their output is `out*`."""
    base, turned = ["--base", f"{models}/base"], f"{models}/turned"
    data, zoo = f"{models}/data", ["zoo", *base]
    flex_switch = ["compress", turned, *base, "-o", "out.fsw", "--name", "turned", "--target-size", "20KB"]
    return {
        "`extract`": ["extract", f"{models}/base", turned, "-o", "out.tv.safetensors"],
        "`compress` by T-Switch": ["compress", turned, *base, "-o", "out.fsw", "--set", "drop=0.6"],
        "`compress` by FlexSwitch, without examples": [*flex_switch, "--set", "objective=none"],
        "`compress` by FlexSwitch, 20 steps": [*flex_switch, "--exemplars", data, "--set", "steps=20"],
        "`compress --method lossless`": ["compress", turned, *base, "-o", "out.fsw", "--method", "lossless"],
        "`pack`": ["pack", "turned.fsw", "negative.fsw", "-o", "out"],
        "`pack --effort small`": ["pack", "turned.fsw", "negative.fsw", "-o", "out", "--effort", "small"],
        "`index`": ["index", *zoo, "--exemplars", data, "--overwrite"],
        "`route`": ["route", *zoo, "--input", f"{data}/turned.test.npz"],
        "`merge --task`": ["merge", *zoo, "-o", "out", "--task", "turned"],
        "`merge --method ties`": ["merge", *zoo, "-o", "out", "--method", "ties"],
        "`eval` by three methods": ["eval", *zoo, "--data", data, "--methods", "base,t-switch,auto-switch"],
        "`inspect`": ["inspect", "zoo"],
        "`inspect --storage`": ["inspect", "turned.fsw", "--storage"],
        "`verify`": ["verify", "zoo"],
    }


def seconds_of(arguments: Sequence[str], work: Path, code: Path) -> float:
    """Returns how long a command takes in a folder. code: where numba keeps its machine code."""
    for old in work.glob("out*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    variables = {**os.environ, "NUMBA_CACHE_DIR": str(code), "FLEXSWITCH_CACHE": str(work / "hashes")}
    started = time.perf_counter()
    done = subprocess.run(["flexswitch", *arguments], cwd=work, env=variables, capture_output=True, text=True)
    taken = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"flexswitch {' '.join(arguments)}\n{done.stderr}")
    return taken


def measured(models: Path, work: Path) -> list[list[str]]:
    """Returns the rows of the table, medians of several rounds."""
    named, code = commands(models), work / "code"
    for task in TASKS:
        made = ["compress", f"{models}/{task}", "--base", f"{models}/base", "-o", f"{task}.fsw"]
        seconds_of([*made, "--set", "drop=0.6"], work, code)
    seconds_of(["pack", "turned.fsw", "negative.fsw", "-o", "zoo"], work, code)
    seconds_of(["index", "zoo", "--base", f"{models}/base", "--exemplars", f"{models}/data"], work, code)
    rows = []
    for name, arguments in named.items():
        times = []
        for _ in range(_ROUNDS):
            shutil.rmtree(code, ignore_errors=True)
            times.append([seconds_of(arguments, work, code) for _ in range(2)])
        first, second = (statistics.median(each) for each in zip(*times, strict=True))
        rows.append([name, f"{first:.1f}", f"{second:.1f}", f"{first - second:.1f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder that the example wrote")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        rows = measured(options.models.resolve(), Path(work))
    text = f"""Seconds of a command where there is no machine code of numba yet, of the same command
        again, and the difference, which is what compiling takes. Medians of {_ROUNDS} rounds on
        {machine()}."""
    section = f"""## The first call

    python examples/digits/train.py --out build/digits
    python benchmarks/first_call/run.py --models build/digits

{textwrap.fill(" ".join(text.split()), 110)}

{table(["command", "first", "second", "more"], rows)}"""
    write_section("first-call", section)
    print(section)


if __name__ == "__main__":
    main()
