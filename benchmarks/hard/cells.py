"""Measures one task of a suite, compressed one way. Each result is kept in a file of its own."""

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from suites import Suite

from flexswitch.codecs.errors import FlexswitchError
from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.compression.extras import Extras
from flexswitch.merging.models.examples import read_examples, task_file
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.task_vector import TaskVector
from flexswitch.merging.zoos.pack import Form, create_zoo

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "flex_switch"))

from measure import SEARCHED, load, outputs, search, setting_text, squeeze  # in the folder added above

Outputs = NDArray[np.float64]
NEAR = 1.25  # times the target: a larger file is not of this size
FIRST, CLOSE = 0.05, 0.03  # where a search of a setting starts, and how near in log bytes it ends


def pair(suite: Suite, task: str) -> dict[str, Any]:
    """Returns a pair's parameters, ‖Δ‖/‖W‖, touched entries, and the scores of base and fine-tuned model."""
    kept = place(suite, task, "pair")
    if not kept.exists():
        vector, base = suite.setup.vector(task), suite.setup.base
        moved = whole = 0.0
        touched = 0
        for name in vector.tensors:
            whole += float(base.read(name).double().square().sum())
            for block in vector.blocks(name):
                moved += float(np.square(block, dtype=np.float64).sum())
                touched += int(np.count_nonzero(block))
        result = {"parameters": vector.parameters, "norm": math.sqrt(moved / whole), "touched": touched}
        for name, factor in (("base", 0.0), ("individual", 1.0)):
            result[name] = scores(suite, task, vector, factor)
        keep(kept, result)
    return load(kept)


def at_size(suite: Suite, task: str, label: str, bits: float, settings: Sequence[str]) -> None:
    """Measures FlexSwitch, labelled so, by a file of so many bits per parameter."""
    size = f"target_size={target_bytes(suite, task, bits)}"
    cell(suite, task, "flexswitch", settings, bits, label, size)


def searched(suite: Suite, task: str, method: str, bits: float) -> None:
    """Measures a rival by the setting that gives a file of this size, if one does."""
    name, others = SEARCHED[method]
    share, size = nearest(suite, task, method, bits)
    if size < NEAR * target_bytes(suite, task, bits):
        cell(suite, task, method, (setting_text(name, share), *others), bits)


def nearest(suite: Suite, task: str, method: str, bits: float) -> tuple[float, int]:
    """Returns the share whose setting gives about so many bits, and the file's bytes; see `search`.

    The search starts where that of the suite's first task ended.
    """
    name, others = SEARCHED[method]
    kept = place(suite, task, f"setting-{method}-{bits:g}")
    if not kept.exists():
        first = suite.tasks[0]
        start = FIRST if task == first else nearest(suite, first, method, bits)[0]

        def measure(text: str) -> int:
            return compressed(suite, task, method, (text, *others), "int8")[0].path.stat().st_size

        keep(kept, search(name, measure, target_bytes(suite, task, bits), start, CLOSE))
    share, size = json.loads(kept.read_text())
    return share, size


def target_bytes(suite: Suite, task: str, bits: float) -> int:
    """Returns the bytes of a file with so many bits per parameter."""
    return int(bits * suite.setup.vector(task).parameters / 8)


def cell(
    suite: Suite,
    task: str,
    method: str,
    settings: Sequence[str],
    bits: float | None = None,
    label: str | None = None,
    target: str | None = None,
) -> None:
    """Measures scores, bytes and seconds; of a size that cannot be met it keeps why not, as "refused".

    bits: the size that is meant. label: the method's name in the tables, where it has another. target: the
    setting of a size, for which the task's own tensors are rounded as they have to be, else to 8 bits.
    """
    texts = (*settings, *([target] if target else []))
    kept = place(suite, task, "-".join([label or method, *texts]).replace("=", "").replace(",", ""))
    if kept.exists():
        return
    result: dict[str, Any] = {"method": label or method, "settings": list(settings), "bits": bits}
    started = time.perf_counter()
    try:
        artifact, seconds = compressed(suite, task, method, texts, "auto" if target else "int8")
    except FlexswitchError as reason:
        keep(kept, {**result, "refused": str(reason)})
        return
    error = artifact.header.error
    result |= {"file": artifact.path.stat().st_size, "extras": artifact.extra_bytes(), "seconds": seconds}
    result |= {"error": None if error is None else error.relative}
    keep(kept, result | scores(suite, task, ArtifactVector(artifact, suite.setup.base)))
    print(f"{suite.name}/{task} {kept.stem}: {time.perf_counter() - started:.0f} s", flush=True)


@lru_cache(maxsize=1)  # the last one of a search is measured next, of the same files
def compressed(
    suite: Suite, task: str, method: str, settings: tuple[str, ...], extras: Extras
) -> tuple[Artifact, float]:
    """Returns a task's artifact, packed as small as it gets, and the seconds of its compression."""
    last = place(suite, task, f"last-{os.getpid()}")  # each process its own
    path, zoo = last.with_suffix(".fsw"), last.with_suffix(".zoo")
    started = time.perf_counter()
    squeeze(suite.setup, task, method, settings, path, extras)
    seconds = time.perf_counter() - started
    create_zoo(zoo, [path], Form(effort="small", jobs=suite.jobs), None, True, lambda file: None)
    return dict(open_zoo(zoo).items())[task], seconds


def scores(suite: Suite, task: str, vector: TaskVector, factor: float = 1.0) -> dict[str, float]:
    """Returns what base + factor · vector scores beside the fine-tuned model, on all test examples.

    accuracy and agreement in percent; of energies the distance, the root of the mean squared difference.
    """
    if suite.kind.outputs == "none":
        return {}
    examples = read_examples(task_file(suite.setup.data, task, "test"), labelled=None)
    found, right = outputs(suite.setup, task, vector, examples, factor), finetuned(suite, task)
    if suite.kind.outputs == "energies":
        return {"distance": float(np.sqrt(np.square(found - right).mean()))}
    labels = np.array(examples.labels)
    return {
        "accuracy": 100 * float((found.argmax(1) == labels).mean()),
        "agreement": 100 * float((found.argmax(1) == right.argmax(1)).mean()),
    }


def finetuned(suite: Suite, task: str) -> Outputs:
    """Returns the fine-tuned model's outputs on its test examples."""
    kept = place(suite, task, "outputs").with_suffix(".npy")
    if not kept.exists():
        examples = read_examples(task_file(suite.setup.data, task, "test"), labelled=None)
        np.save(kept, outputs(suite.setup, task, suite.setup.vector(task), examples))
    found: Outputs = np.load(kept)
    return found


def place(suite: Suite, task: str, name: str) -> Path:
    """Returns the file of a result."""
    folder = suite.cache / suite.name / task
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.json"


def keep(path: Path, value: object) -> None:
    """Writes a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1))
    partial.rename(path)
