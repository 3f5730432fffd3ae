"""Measures recipes: a zoo of many small checkpoints from one file, against a shell loop of the same commands.

python benchmarks/zoo/run.py --tasks 1000 --work build/zoo
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from report import write_section  # noqa: E402

RECIPE = """
version: 1
defaults: {base: base.safetensors}
steps:
  - name: compress {task}
    command: compress
    foreach: {table: zoo.csv}
    inputs: ["models/{task}.safetensors"]
    options: {output: "artifacts/{task}.fsw", set: {drop: 0.6}}
  - {name: pack, command: pack, inputs: ["artifacts/*.fsw"], options: {output: zoo}}
  - {name: verify, command: verify, inputs: [zoo]}
"""
_LOOPED = 5  # tasks that the shell loop compresses; its time is in proportion
_BARE = 40  # tasks by which the overhead of a step is measured


def write_models(work: Path, tasks: int, entries: int) -> None:
    """Writes a base of two tensors and its fine-tunes, each of 4 bytes an entry."""
    (work / "models").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    shape = (2, entries // 2048, 1024)
    base = generator.normal(size=shape).astype(np.float32)
    save_file({"a.weight": base[0], "b.weight": base[1]}, work / "base.safetensors")
    for number in range(tasks):
        tuned = base + 0.01 * generator.normal(size=shape).astype(np.float32)
        save_file({"a.weight": tuned[0], "b.weight": tuned[1]}, work / "models" / f"t{number}.safetensors")
    (work / "zoo.csv").write_text("task\n" + "".join(f"t{number}\n" for number in range(tasks)))
    (work / "zoo.yaml").write_text(RECIPE)


def flexswitch(work: Path, *words: str) -> tuple[float, int, list[str]]:
    """Runs a command; returns its seconds, its own largest memory in bytes, and the steps that it did."""
    command = [sys.executable, "-m", "flexswitch.cli", *words]
    began, memory = time.perf_counter(), 0
    with (work / "output.json").open("w") as output:
        process = subprocess.Popen(command, cwd=work, stdout=output, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            memory = max(memory, _peak(process.pid))
            time.sleep(0.05)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: exit status {process.returncode}")
    steps = []
    if words[0] == "run" and "--check" not in words:
        found = json.loads((work / "output.json").read_text())["steps"]
        steps = [step["name"] for step in found if step["status"] == "done"]
    return seconds, memory, steps


def _peak(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def overhead(work: Path) -> tuple[float, float]:
    """Returns the seconds of a bare `compress` in a warm process, and those of a step of a recipe in one."""
    from flexswitch.merging.commands.compress import compress
    from flexswitch.recipes.digests import Digests
    from flexswitch.recipes.engine import ThisProcess
    from flexswitch.recipes.prepared import prepare, read_graph
    from flexswitch.recipes.run import run
    from flexswitch.recipes.schedule import Room
    from flexswitch.recipes.selection import Choice, select
    from flexswitch.recipes.step_run import log_folder

    class Silent:
        def started(self, number: int) -> None: ...
        def told(self, number: int, text: str) -> None: ...
        def ended(self, event: object) -> None: ...

    small = work / "small"
    shutil.rmtree(small, ignore_errors=True)
    (small / "models").mkdir(parents=True)
    names = [f"t{number}" for number in range(_BARE)]
    for name in ("base", *(f"models/{name}" for name in names)):
        shutil.copy(work / f"{name}.safetensors", small / f"{name}.safetensors")
    (small / "zoo.csv").write_text("\n".join(["task", *names]))
    (small / "zoo.yaml").write_text(RECIPE[: RECIPE.index("  - {name: pack")])
    before = Path.cwd()
    os.chdir(small)
    (small / "bare").mkdir()
    settings = {"drop": 0.6}
    compress(
        "models/t0.safetensors", "bare/warm.fsw", base="base.safetensors", settings=settings, resume=True
    )
    began = time.perf_counter()
    for name in names:
        compress(f"models/{name}.safetensors", f"bare/{name}.fsw", base="base.safetensors", settings=settings)
    bare = (time.perf_counter() - began) / len(names)
    began = time.perf_counter()
    log_folder(Path("zoo.lock")).mkdir()
    prepared = prepare(read_graph(Path("zoo.yaml")))
    choice = Choice()
    outcome = run(
        prepared, select(prepared, choice), choice, ThisProcess(Digests()), Room(99, 0, 1 << 40), Silent()
    )
    step = (time.perf_counter() - began) / len(outcome.records)
    os.chdir(before)
    return bare, step


def planning(work: Path, steps: int) -> float:
    """Returns the seconds that a recipe of many steps takes to plan."""
    from flexswitch.recipes.prepared import read_graph

    folder = work / "planned"
    folder.mkdir(exist_ok=True)
    (folder / "zoo.csv").write_text("task\n" + "".join(f"t{number}\n" for number in range(steps - 2)))
    (folder / "zoo.yaml").write_text(RECIPE)
    before = Path.cwd()
    os.chdir(folder)
    began = time.perf_counter()
    graph = read_graph(Path("zoo.yaml"))
    seconds = time.perf_counter() - began
    os.chdir(before)
    assert len(graph.order) == steps
    return seconds


def shell_loop(work: Path, tasks: int) -> float:
    """Returns the seconds of a shell loop over all tasks, from a few of them, and of `pack` and `verify`."""
    shutil.rmtree(work / "looped", ignore_errors=True)
    (work / "looped").mkdir()
    seconds = 0.0
    for number in range(_LOOPED):
        words = (f"models/t{number}.safetensors", "--base", "base.safetensors", "-o", f"looped/t{number}.fsw")
        seconds += flexswitch(work, "compress", *words)[0]
    packed = [str(path.relative_to(work)) for path in sorted((work / "artifacts").glob("*.fsw"))]
    joined = (
        flexswitch(work, "pack", *packed, "-o", "looped/zoo")[0] + flexswitch(work, "verify", "looped/zoo")[0]
    )
    return seconds / _LOOPED * tasks + joined


def main() -> None:
    """Runs the benchmark and writes its section of docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--megabytes", type=float, default=2.0)
    parser.add_argument("--work", type=Path, default=Path("build/zoo"))
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    work = options.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    write_models(work, options.tasks, int(options.megabytes * 250_000) // 2048 * 2048)
    load = os.getloadavg()[0]
    rows = []
    whole, memory, steps = flexswitch(work, "run", "zoo.yaml", "--jobs", "2", "--json")
    rows.append(("the whole recipe, 2 processes", f"{whole:.1f} s, {len(steps)} steps"))
    rows.append(("memory of the driver", f"{memory / 1e6:.0f} MB"))
    again, _, steps = flexswitch(work, "run", "zoo.yaml", "--json")
    rows.append(("again, nothing to do", f"{again:.2f} s, {len(steps)} steps"))
    rows.append(("`--check`", f"{flexswitch(work, 'run', 'zoo.yaml', '--check', '--json')[0]:.2f} s"))
    shutil.copy(work / "models" / "t1.safetensors", work / "models" / "t0.safetensors")
    changed, _, steps = flexswitch(work, "run", "zoo.yaml", "--json")
    rows.append(("one input changed", f"{changed:.1f} s: {', '.join(steps)}"))
    bare, step = overhead(work)
    rows.append(("a bare `compress`, and a step of it", f"{bare * 1e3:.0f} ms, {step * 1e3:.0f} ms"))
    rows.append(("planning 10,000 steps", f"{planning(work, 10_000):.1f} s"))
    rows.append(("the same commands in a shell loop", f"{shell_loop(work, options.tasks):.0f} s"))
    models = f"{options.tasks:,} checkpoints of {options.megabytes:g} MB"
    text = [
        "## A zoo from one file",
        "",
        f"`python benchmarks/zoo/run.py --tasks {options.tasks} --write`",
        "",
        f"{models}, {os.cpu_count()} cores, load average {load:.1f} from others.",
        "", "| what | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows),
    ]  # fmt: skip
    print("\n".join(text))
    if options.write:
        write_section("zoo", "\n".join(text))


if __name__ == "__main__":
    main()
