"""The section of docs/benchmarks.md on hard pairs, made of all results that are kept."""

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from report import machine, table  # in the folder that run.py adds
from suites import KINDS

OURS = ("flexswitch", "data-free")
SOURCES = {
    "text8": "MiniLM's by benchmarks/text8/train.py --hard",
    "digits": "those of examples/digits",
    "ani": "the potentials of the package torchani 2.0",
    "chgnet": "those of the package chgnet 0.4.2, whose outputs are not computed",
}

Result = dict[str, Any]
Results = dict[str, Result]  # task → its result


def introduction() -> str:
    """Returns the section before those of the suites."""
    return f"""## Hard pairs

    python benchmarks/hard/make.py --data DIR --out OUT --wheels WHEELS
    python benchmarks/hard/run.py --models OUT --data DIR

Fine-tunes whose weights moved far: {"; ".join(SOURCES.values())}.
Accuracy in %, whole test files; that of the text tasks' other fine-tunes is in the first section.

Bits are those of whole files, heads included, per parameter and per *touched* one, which the fine-tuning
changed. FlexSwitch and *data-free*, which is FlexSwitch without exemplars, round the heads as their size
asks; for the others they have 8 bits. A rival's setting is searched for each task, and *setting* is the
first's; a method has no row at a size that it cannot meet. *Gap* is the share of the way from the base, with
the task's head, to the fine-tuned model, *alike* the share of answers that are the fine-tuned model's,
*error* is that which the artifact records. FlexSwitch is trained on 100 unlabelled examples a task. Seconds
are of one compression."""


def section(cache: Path, suite: str) -> str | None:
    """Returns the section of a suite, None where nothing of it was measured."""
    pairs = read_pairs(cache / suite)
    if not pairs:
        return None
    rows, kind = read_rows(cache / suite, pairs), KINDS[suite]
    tables = [pair_table(pairs), compared(suite, pairs, rows)]
    tables += [by_task(pairs, rows)] if kind.outputs == "classes" else []
    return "\n\n".join([f"**Hard pairs: {kind.title}.** Measured on {machine()}.", *tables])


def pair_table(pairs: Results) -> str:
    """Returns the table of a suite's pairs."""
    rows = []
    for task, each in pairs.items():
        scores = [accuracy(each.get(key, {})) for key in ("base", "individual")]
        rows.append([
            task, f"{each['parameters'] / 1e6:.2f} M", f"{each['norm']:.3f}",
            f"{100 * each['touched'] / each['parameters']:.1f} %", *scores,
        ])  # fmt: skip
    return table(["task", "parameters", "‖Δ‖/‖W‖", "touched", "base", "fine-tuned"], rows)


def accuracy(scores: Mapping[str, float]) -> str:
    return f"{scores['accuracy']:.1f}" if "accuracy" in scores else ""


def compared(suite: str, pairs: Results, rows: Mapping[tuple[str, str], Results]) -> str:
    """Returns the table of a suite's methods: means over the tasks that a row has."""
    outputs = KINDS[suite].outputs
    header = ["method", "at", "setting", "bits", "touched bits", "kB"]
    header += ["accuracy", "gap, %", "alike, %"] if outputs == "classes" else []
    header += ["distance, kcal/mol", "gap, %"] if outputs == "energies" else []
    header += ["error", "seconds", "tasks"]
    lines = []
    for (method, size), found in rows.items():
        these = {task: pairs[task] for task in found}
        bits, kilobytes = 8 * total(found, "file"), total(found, "file") / len(found) / 1e3
        searched = method not in OURS and "bits" in size
        setting = next(iter(found.values()))["settings"] if searched else []
        line = [method, size, ", ".join(setting), f"{bits / total(these, 'parameters'):.3f}"]
        line += [f"{bits / total(these, 'touched'):.3f}", f"{kilobytes:,.1f}"]
        if outputs == "classes":
            line += [f"{mean(found, 'accuracy'):.2f}", f"{gap(these, found, 'accuracy'):.1f}"]
            line += [f"{mean(found, 'agreement'):.2f}"]
        if outputs == "energies":
            line += [f"{mean(found, 'distance'):.3f}", f"{gap(these, found, 'distance'):.1f}"]
        errors = [each["error"] for each in found.values() if each["error"] is not None]
        line += [f"{statistics.mean(errors):.3f}" if errors else "", f"{mean(found, 'seconds'):.0f}"]
        lines.append([*line, f"{len(found)} of {len(pairs)}"])
    return table(header, lines)


def by_task(pairs: Results, rows: Mapping[tuple[str, str], Results]) -> str:
    """Returns the table of the accuracy of each task: base, fine-tuned, and FlexSwitch's sizes."""
    found = {key: {task: each[key] for task, each in pairs.items()} for key in ("base", "individual")}
    found |= {f"{method}, {size}": row for (method, size), row in rows.items() if method in OURS}
    lines = []
    for label, scores in found.items():
        each = [accuracy(scores.get(task, {})) for task in pairs]
        lines.append([label, *each, f"{mean(scores, 'accuracy'):.2f}" if all(each) else ""])
    return table(["", *pairs, "average"], lines)


def read_pairs(folder: Path) -> Results:
    """Returns each measured task's pair."""
    return {path.parent.name: read(path) for path in sorted(folder.glob("*/pair.json"))}


def read_rows(folder: Path, tasks: Iterable[str]) -> dict[tuple[str, str], Results]:
    """Returns (method, size) → the results of its tasks, without refused ones."""
    found = [(task, read(path)) for task in tasks for path in sorted((folder / task).glob("*.json"))]
    kept = [(task, each) for task, each in found if isinstance(each, dict) and "file" in each]
    rows: dict[tuple[str, str], Results] = {}
    for task, each in sorted(kept, key=lambda entry: (entry[1]["method"], entry[1]["bits"] or 0)):
        steps = [text for text in each["settings"] if text.startswith("steps=")]
        size = each["settings"] if each["bits"] is None else [f"{each['bits']:g} bits", *steps]
        rows.setdefault((each["method"], ", ".join(size)), {})[task] = each
    return rows


def gap(pairs: Results, found: Results, score: str) -> float:
    """Returns the share of the gap between base and fine-tuned models that is closed, in percent."""
    base, individual = (
        mean({task: each[key] for task, each in pairs.items()}, score) for key in ("base", "individual")
    )
    return 100 * (mean(found, score) - base) / (individual - base)


def mean(found: Results, key: str) -> float:
    return statistics.mean(each[key] for each in found.values())


def total(found: Results, key: str) -> float:
    return sum(each[key] for each in found.values())


def read(path: Path) -> Any:
    return json.loads(path.read_text())
