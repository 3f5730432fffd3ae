"""Records the demo as text and draws how it routes a batch: python docs/recording.py build/digits

The folder is what examples/digits/train.py made. All is done anew from its models, in a folder that is
removed, and written to docs/recording.md and docs/routed.svg.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from pictures import DOCS, draw_routed

RECIPE = "recipes/digits.yaml"
ROUTE = "route build/digits/flex-zoo --base build/digits/base --input batch.npz"
# What is typed, each below the sentence that says why.
PARTS = [
    ("One file makes everything, from the extraction to the evaluation.", f"run {RECIPE}"),
    ("Typed again, it has nothing to do, and prints the tables that the lock holds.", f"run {RECIPE}"),
    ("For CI: is all as the lock says?", f"run {RECIPE} --check"),
    ("What is in a zoo?", "inspect build/digits/flex-zoo"),
    ("One task, tensor by tensor:", "inspect build/digits/flexswitch/turned.fsw"),
    ("Which tasks are mistaken for which?", "index build/digits/flex-zoo --report confusion.png"),
    ("A mistake ends in one line, and in a status that a script tells apart:", "inspect build/digits"),
    ("Which tasks does each picture of a mixed batch take? Nobody says which task it is of.", ROUTE),
]
_COLUMNS = 100
_OF_A_TASK = 3  # pictures of the batch
_HEAD = """# The demo, recorded

What `make demo` prints, and a look at what it made. `make recording` writes this page anew; its times are
those of two cores that did other work too.

"""
_PICTURE = """The same as a picture: a column is a sample of the batch, its shades are the weights of the
tasks, and the frame is the task that it was drawn from.

![A batch of pictures, each above its weights of the tasks](routed.svg)
"""


def record(models: Path) -> tuple[str, dict[str, object]]:
    """Returns the page and what `route` says of the batch, with the samples' own tasks and pictures."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        (place / "recipes").mkdir()
        shutil.copy(DOCS.parent / RECIPE, place / RECIPE)
        for name in ("base", "data", *_tasks(models)):
            shutil.copytree(models / name, place / "build" / "digits" / name)
        own, pixels = _batch(models / "data")
        np.savez(place / "batch.npz", x=pixels)
        page = _HEAD
        for why, line in PARTS:
            page += f"{why}\n\n```text\n$ flexswitch {line}\n{_output(line, place)}```\n\n"
        routed = json.loads(_output(f"{ROUTE} --json --quiet", place))
    return page + _PICTURE, {**routed, "own": own, "pixels": pixels}


def _tasks(models: Path) -> list[str]:
    """Returns the names of the fine-tunes."""
    return sorted(path.name.partition(".")[0] for path in (models / "data").glob("*.train.npz"))


def _batch(data: Path) -> tuple[list[str], np.ndarray]:
    """Returns the task of each picture of a mixed batch of test examples, and the pictures."""
    tasks = [path.name.partition(".")[0] for path in sorted(data.glob("*.test.npz"))]
    own = [task for task in tasks for _ in range(_OF_A_TASK)]
    pixels = np.concatenate([np.load(data / f"{task}.test.npz")["x"][:_OF_A_TASK] for task in tasks])
    order = np.random.default_rng(0).permutation(len(own))
    return [own[number] for number in order], pixels[order]


def _output(line: str, place: Path) -> str:
    """Returns what a command prints, its notes and its result."""
    environment = {**os.environ, "COLUMNS": str(_COLUMNS)}
    command, both = ["flexswitch", *line.split()], subprocess.STDOUT
    run = subprocess.run(command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=both, text=True)
    return run.stdout


if __name__ == "__main__":
    page, routed = record(Path(sys.argv[1]).resolve())
    (DOCS / "recording.md").write_text(page, encoding="utf-8")
    draw_routed(routed, DOCS / "routed.svg")
