"""Measures what a recipe's step costs beside its work, and what a long recipe takes to plan."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models import write_recipe

from flexswitch.merging.commands.compress import compress
from flexswitch.recipes.digests import Digests
from flexswitch.recipes.engine import ThisProcess
from flexswitch.recipes.prepared import prepare, read_graph
from flexswitch.recipes.run import run
from flexswitch.recipes.schedule import Room
from flexswitch.recipes.selection import Choice, select
from flexswitch.recipes.step_run import log_folder

_TASKS = 40
_ROOM = Room(99, 0, 1 << 40)


class Silent:
    """Tells nothing of a run's progress."""

    def started(self, number: int) -> None: ...
    def told(self, number: int, text: str) -> None: ...
    def ended(self, event: object) -> None: ...


def overhead(work: Path) -> tuple[float, float]:
    """Returns the seconds of a bare `compress` in a warm process, and those of a recipe's step in one."""
    small = work / "small"
    shutil.copytree(work / "base", small / "base")
    (small / "models").mkdir()
    names = [f"t{number}" for number in range(_TASKS)]
    for name in names:
        shutil.copy(work / "models" / f"{name}.safetensors", small / "models" / f"{name}.safetensors")
    write_recipe(small, names)
    recipe = small / "zoo.yaml"
    recipe.write_text("".join(line for line in recipe.read_text().splitlines(True) if "- {name" not in line))
    with inside(small):
        (small / "bare").mkdir()
        _compress("t0", "warm", resume=True)
        began = time.perf_counter()
        for name in names:
            _compress(name, name)
        bare = (time.perf_counter() - began) / len(names)
        began = time.perf_counter()
        log_folder(Path("zoo.lock")).mkdir()
        prepared, choice = prepare(read_graph(Path("zoo.yaml"))), Choice()
        engine = ThisProcess(Digests())
        outcome = run(prepared, select(prepared, choice), choice, engine, _ROOM, Silent())
        return bare, (time.perf_counter() - began) / len(outcome.records)


def planning(work: Path, steps: int) -> float:
    """Returns the seconds that a recipe of many steps takes to plan."""
    folder = work / "planned"
    folder.mkdir()
    write_recipe(folder, [f"t{number}" for number in range(steps - 2)])
    with inside(folder):
        began = time.perf_counter()
        graph = read_graph(Path("zoo.yaml"))
        seconds = time.perf_counter() - began
    assert len(graph.order) == steps
    return seconds


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Makes a folder the current one for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _compress(task: str, output: str, resume: bool = False) -> None:
    compress(
        f"models/{task}.safetensors", f"bare/{output}.fsw", base="base", settings={"drop": 0.6}, resume=resume
    )
