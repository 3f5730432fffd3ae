"""Measures which share of a fine-tuned model's answers data-free compressions keep, by their relative error.

    python benchmarks/forecast/run.py --suite digits=DIR --suite NAME=MODELS,DATA ... --json FILE

MODELS holds `base` and a model directory for each task, DATA (MODELS/data if it is left out) their test
examples, `<task>.test.*`: what examples/digits/train.py and benchmarks/text8/train.py write. Each task is
compressed by every data-free method at several sizes, and its answers to the test examples are compared with
the fine-tuned model's. Tasks that FILE holds already are not measured again.

Printed: how often 95 % of the answers are kept on either side of a relative error, and how far a monotone
curve from the relative error to that share is off on the pairs that it was not fitted to.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.threads import parallel_map
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.hashing import open_base
from flexswitch.merging.checkpoints.pairing import EVERYTHING
from flexswitch.merging.compression.compress import compress
from flexswitch.merging.compression.plan import TrainingInputs
from flexswitch.merging.flex_switch.training_data import DataSettings, open_training_data
from flexswitch.merging.models.examples import task_file
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.open_vector import open_finetuned
from flexswitch.merging.task_vectors.relative_change import change_against
from flexswitch.merging.task_vectors.task_vector import TaskVector

WAYS: list[tuple[str, dict[str, Any]]] = [
    *(("t-switch", {"drop": drop}) for drop in (0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99)),
    *(("p-discard", {"drop": drop}) for drop in (0.8, 0.9, 0.97, 0.99)),
    *(("bin-discard", {"by": "random", "drop": drop}) for drop in (0.5, 0.9)),
    *(("dare", {"drop": drop}) for drop in (0.3, 0.5, 0.8, 0.9, 0.97, 0.99)),
    *(("tvq", {"bits": bits}) for bits in (1, 2, 3, 4)),
    ("bitdelta", {}),
    *(("svd", {"rank": rank}) for rank in (1, 2, 6, 24)),
    *(("delta-come", {"entry_bits": entry_bits}) for entry_bits in (0.1, 0.3, 1.0)),
    *(("ultradelta", {"drop": drop}) for drop in (0.9, 0.97, 0.99)),
    *(("compeft", {"density": density}) for density in (0.02, 0.05, 0.2, 0.5)),
    *(
        ("flexswitch", {"objective": "none", "target_size": size})
        for size in ("0.05%", "0.1%", "0.3%", "1%", "2%", "4%", "8%")
    ),
]
FEW = (
    "t-switch 0.6",
    "t-switch 0.9",
    "t-switch 0.99",
    "dare 0.9",
    "tvq 2",
    "flexswitch 0.1%",
    "flexswitch 0.3%",
)
ENOUGH = 0.95
LIMITS = (0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9)


def called(method: str, settings: dict[str, Any]) -> str:
    """Returns a method with the last of its settings."""
    return " ".join([method, *map(str, list(settings.values())[-1:])])


def measured(
    suite: str, task: str, base: Checkpoint, vector: TaskVector, data: Path, few: bool, limit: int
) -> Iterator[dict[str, Any]]:
    """Yields for each way to compress a task its relative error, its bytes and the share of answers kept."""
    with tempfile.TemporaryDirectory() as name, parallel_map(1) as in_parallel:
        folder = Path(name)
        test = task_file(data, task, "test")
        (folder / test.name.replace(f"{task}.test", f"{task}.train")).symlink_to(test.resolve())
        inputs = TrainingInputs(base, folder, limit)
        opened = open_training_data(vector, DataSettings(task, inputs, "kl", 0, 1, 0, "float32"), in_parallel)
        pair = {"suite": suite, "task": task, "examples": len(opened.exemplars)}
        pair["relative_change"] = change_against(base, vector)
        for method, settings in WAYS:
            if few and called(method, settings) not in FEW:
                continue
            path = folder / "task.fsw"
            try:
                compress(vector, path, task, method, settings, overwrite=True)
            except InputError:
                continue  # the head alone takes more than this size
            artifact = open_artifact(path)
            opened.load(base, ArtifactVector(artifact, base))
            kept = opened.divergence(opened.exemplars, in_parallel)[1]
            error = artifact.header.error.relative if artifact.header.error else 0.0
            way = {"way": called(method, settings), "bytes": path.stat().st_size}
            yield {**pair, **way, "relative_error": error, "kept": round(kept, 4)}


def report(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the table of limits, and the curve's error on pairs left out."""
    errors = np.array([row["relative_error"] for row in rows])
    kept = np.array([row["kept"] for row in rows])
    pairs = np.array([f"{row['suite']}/{row['task']}" for row in rows])
    print(f"{len(rows)} compressions of {len(set(pairs))} pairs")
    print("relative error | at most it: kept < 95 % | least kept | beyond it: kept < 95 %")
    for limit in LIMITS:
        under = errors <= limit
        few, many = (int(np.sum(kept[side] < ENOUGH)) for side in (under, ~under))
        least = f"{kept[under].min():.1%}" if under.any() else "–"
        print(f"{limit:14} | {few:3} of {under.sum():3} | {least} | {many:3} of {(~under).sum():3}")
    if len(set(pairs)) < 2:
        return
    off = left_out(errors, kept, pairs)
    for name in sorted({row["suite"] for row in rows}):
        own = off[[row["suite"] == name for row in rows]]
        print(f"pairs of {name} left out: the curve is off by {own.mean():.3f}, at most {own.max():.3f}")
    print(f"all pairs left out: off by {off.mean():.3f}, {np.mean(off <= 1 - ENOUGH):.0%} within 0.05")


def left_out(errors: NDArray[Any], kept: NDArray[Any], pairs: NDArray[Any]) -> NDArray[Any]:
    """Returns how far the curve fitted to the other pairs is off, for each compression."""
    off = np.zeros(len(kept))
    for pair in set(pairs):
        own = pairs == pair
        curve = IsotonicRegression(increasing=False, out_of_bounds="clip").fit(errors[~own], kept[~own])
        off[own] = np.abs(curve.predict(errors[own]) - kept[own])
    return off


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", action="append", required=True, help="NAME=MODELS or NAME=MODELS,DATA")
    parser.add_argument("--json", type=Path, required=True, help="where the measurements are kept")
    parser.add_argument("--few", action="store_true", help="seven ways to compress only, for large models")
    parser.add_argument("--limit", type=int, default=400, help="test examples of a task")
    options = parser.parse_args()
    rows = json.loads(options.json.read_text()) if options.json.exists() else []
    done = {(row["suite"], row["task"]) for row in rows}
    for text in options.suite:
        suite, _, folders = text.partition("=")
        models = Path(folders.split(",")[0])
        data = Path(folders.split(",")[1]) if "," in folders else models / "data"
        base = open_base(models / "base")
        for folder in sorted(models.iterdir()):
            task = folder.name
            if task in ("base", "data") or not (folder / "config.json").exists() or (suite, task) in done:
                continue
            vector = open_finetuned(str(folder), base, EVERYTHING)
            own = list(measured(suite, task, base, vector, data, options.few, options.limit))
            rows += own
            options.json.write_text(json.dumps(rows, indent=0) + "\n")
            line = ", ".join(f"{row['way']}: {row['relative_error']:g} → {row['kept']:.1%}" for row in own)
            print(f"{suite}/{task}, ‖τ‖/‖θ‖ {own[0]['relative_change']}: {line}", flush=True)
    report(rows)


if __name__ == "__main__":
    main()
