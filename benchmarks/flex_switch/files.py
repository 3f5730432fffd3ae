"""Measures FlexSwitch by whole files of 0.1 % of float32, heads included, and writes docs/benchmarks.md.

    python benchmarks/flex_switch/files.py --data DIR --models benchmarks/text8/cache

The folders are those of run.py. Each result and its artifact are kept in --cache.
"""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from measure import Setup, individual, load, mean, read_setup, score, squeeze
from report import machine, table, write_section

from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector

SIZE, STEPS, SEEDS = "0.1%", 100, (0, 1)


def measured(setup: Setup, task: str, seed: int) -> dict[str, Any]:
    """Returns the accuracy in percent and the bytes of a task's file."""
    kept = setup.cache / f"file-{SIZE}-{seed}" / f"{task}.json"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        settings = [f"target_size={SIZE}", f"steps={STEPS}", f"seed={seed}"]
        artifact = squeeze(setup, task, "flexswitch", settings, kept.with_suffix(".fsw"), "auto")
        accuracy = score(setup, task, ArtifactVector(artifact, setup.base))
        kept.write_text(json.dumps({"accuracy": accuracy, "bytes": artifact.path.stat().st_size}))
    return load(kept)


def row(name: str, accuracy: dict[str, float], before: float, size: float) -> list[str]:
    """Returns a row of the table: each task's accuracy, their mean and how far it is from `before`."""
    average = mean(accuracy)
    scores = [f"{value:.1f}" for value in accuracy.values()]
    return [name, *scores, f"{average:.2f}", f"{average - before:+.2f}", f"{size / 1e3:,.1f}"]


def main() -> None:
    setup = read_setup(__doc__)
    alone = individual(setup)
    before = mean(alone["accuracy"])
    rows = [row("individual", alone["accuracy"], before, mean(alone["payload"]))]
    for seed in SEEDS:
        found = {task: measured(setup, task, seed) for task in setup.tasks}
        accuracy = {task: each["accuracy"] for task, each in found.items()}
        rows.append(
            row(f"flexswitch, seed {seed}", accuracy, before, mean({t: f["bytes"] for t, f in found.items()}))
        )
    section = f"""## FlexSwitch by whole files of 0.1 %

    python benchmarks/flex_switch/files.py --data DIR --models benchmarks/text8/cache

The models of the table above by `--target-size {SIZE} --set steps={STEPS}`, otherwise by defaults. Bytes are
of whole files, with heads in 8 bits where that fits. Accuracy in %, whole test files; the seed draws the
exemplars. Measured on {machine()}.

{table(["", *setup.tasks, "average", "to individual", "kB"], rows)}"""
    write_section("flexswitch-files", section)
    print(section)


if __name__ == "__main__":
    main()
