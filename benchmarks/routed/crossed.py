"""Measures the loss of accuracy under the vector of another task, and writes docs/benchmarks.md.

    python benchmarks/routed/crossed.py --data DIR --models benchmarks/text8/cache --zoo ZOO

DIR holds the eight text tasks and --models the fine-tuned models, both of benchmarks/text8/run.py, which says
where such data comes from; ZOO is a zoo of theirs, or of some of them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flexswitch.merging.evaluation.families import Family, families
from flexswitch.merging.evaluation.setup import Request, open_evaluation
from flexswitch.merging.evaluation.task_models import TaskModels

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from report import machine, table, write_section

_BATCH = 64


def right(task_models: TaskModels, family: Family, task: str, vector: int | None) -> float:
    """Returns the share (%) of a task's texts that its head answers right under one vector, None for none."""
    tasks, examples = list(task_models.vectors), task_models.examples[task]
    order = np.argsort([len(str(text)) for text in examples.inputs], kind="stable")
    answers = np.empty(len(examples), np.int64)
    for start in range(0, len(order), _BATCH):
        rows: NDArray[np.int64] = order[start : start + _BATCH]
        weights = torch.zeros(len(rows), len(tasks))
        if vector is not None:
            weights[:, vector] = 1
        batch = task_models.adapter.batch([examples.inputs[row] for row in rows])
        logits = family.model(batch, weights=weights, heads=[task] * len(rows))
        answers[rows] = logits.argmax(-1).numpy()
    return 100 * float((answers == np.array(examples.labels)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of <task>.<split>.jsonl.gz files")
    parser.add_argument("--models", type=Path, required=True, help="folder with the model directory base")
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="the first N test texts of a task")
    options = parser.parse_args()
    base = str(options.models / "base")
    request = Request(options.zoo, base, options.data, methods=["base"], limit=options.limit)
    evaluation = open_evaluation(request)
    task_models = evaluation.task_models
    tasks = list(task_models.vectors)
    (family,) = families(task_models, "auto")
    body = []
    for task in tasks:
        shares = [right(task_models, family, task, vector) for vector in (*range(len(tasks)), None)]
        body.append([task, *(f"{share:.1f}" for share in shares)])
        print(body[-1], flush=True)
    methods = sorted({record.method for record in evaluation.zoo.record.tasks.values()})
    which = "whole test files" if options.limit is None else f"the first {options.limit} of its test file"
    section = f"""### What the vector of another task costs

    python benchmarks/routed/crossed.py --data DIR --models benchmarks/text8/cache --zoo ZOO

Accuracy (%) of a task's texts, {which}, in its row, under its own head and the vector in the
column, vectors by {", ".join(methods)}; *none* is the base. A misrouted text falls from its own column to
another's.
Measured on {machine()}.

{table(["texts of", *tasks, "none"], body)}"""
    write_section("crossed", section)
    print(section)


if __name__ == "__main__":
    main()
