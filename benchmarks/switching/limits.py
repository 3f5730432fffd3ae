"""Counts what a switched batch has to read and multiply, and what is done; writes docs/benchmarks.md.

    python benchmarks/switching/limits.py

Nothing is timed: the counts follow from the shapes of MiniLM-L6's linear layers, the tasks' delta matrices
and the rows' weights, which are those of run.py's batches.
"""

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from flexswitch.merging.switching.batch_plan import BatchPlan, batch_plan
from flexswitch.merging.switching.cost_model import CostModel, Costs
from flexswitch.merging.switching.delta_matrix import DeltaMatrix
from flexswitch.merging.switching.int8 import Int8Matrix
from flexswitch.merging.switching.mixtures import Factors

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from batches import FULL, weights
from fit import MODEL_WEIGHTS, SHAPES
from report import table, write_section

TASKS = (8, 64)
BATCHES = (1, 16, 64, 256)
LAYERS = 6
STORED_BITS = 1.3  # of an entry, by T-Switch at drop 0.6 and `--effort small`
DIGITS = 2  # bytes that an input is split into, by which int8 products are multiplied


class Counts(NamedTuple):
    """Multiply–adds of float32 numbers and of bytes, and the bytes of weights that are read."""

    floats: float
    bytes_: float
    read: float

    def cells(self) -> list[str]:
        """Returns the counts in thousand millions, and the megabytes."""
        return [f"{self.floats / 1e9:.2f}", f"{self.bytes_ / 1e9:.2f}", f"{self.read / 1e6:,.0f}"]


class Deltas:
    """The delta matrices of tasks that are all alike."""

    def __init__(self) -> None:
        self.matrices: Mapping[str, DeltaMatrix] = {
            f"{layer}.{number}": Int8Matrix(np.zeros(shape, np.int8), np.zeros(256, np.float32), 1.0, DIGITS)
            for layer in range(LAYERS)
            for number, shape in enumerate(SHAPES)
        }

    def __getitem__(self, task: int) -> Mapping[str, DeltaMatrix]:
        return self.matrices


def needed(plan: BatchPlan, per_row: int) -> Counts:
    """Returns what no way can do without: a product for each token, the base once and each task's file."""
    read = 4 * MODEL_WEIGHTS + len(plan.tasks) * MODEL_WEIGHTS * STORED_BITS / 8
    return Counts(plan.count * per_row * MODEL_WEIGHTS, 0, read)


def done(
    plan: BatchPlan, per_row: int, held: Collection[Factors], summed: Collection[int] = ()
) -> tuple[Counts, int]:
    """Returns what layers do where some mixtures have weights of their own, and how many are used.

    summed: the mixtures that may take a product with the weights of each of their tasks.
    """
    plan.hold({mixture: {} for mixture in held}, summed)
    plan.__dict__.pop("others", None)
    terms = plan.terms
    products = np.array([max(1, len(each)) for each in terms.of_mixture])[plan.mixture_of].sum()
    rest = not terms.is_held.all() or any(number < 0 for each in terms.of_mixture for number, _ in each)
    of_tasks = sum(len(task.rows) for task in plan.others) * per_row
    read = 4 * MODEL_WEIGHTS * (len(terms.held) + rest) + MODEL_WEIGHTS * len(plan.others)
    counts = Counts(products * per_row * MODEL_WEIGHTS, DIGITS * of_tasks * MODEL_WEIGHTS, read)
    return counts, len(terms.held)


def main() -> None:
    deltas, body = Deltas(), []
    matrices = {name: torch.empty(matrix.shape) for name, matrix in deltas.matrices.items()}
    cost_model = CostModel(matrices, Costs())
    for per_row in (FULL, 1):
        for tasks in TASKS:
            for count in BATCHES:
                plan = batch_plan(weights(count, tasks).numpy(), deltas, None, None)
                chosen = cost_model.gains(plan, per_row)
                ways = (
                    done(plan, per_row, ()),
                    done(plan, per_row, plan.factors),
                    done(plan, per_row, chosen.by_mixture, chosen.summed),
                )
                body.append(
                    [
                        str(per_row),
                        str(tasks),
                        str(count),
                        f"{len(plan.tasks)}, {len(plan.mixtures)}",
                        *needed(plan, per_row).cells()[::2],
                        *ways[0][0].cells(),
                        *ways[1][0].cells()[::2],
                        str(ways[2][1]),
                        *ways[2][0].cells(),
                    ]
                )
    header = ["tokens", "tasks", "batch", "tasks, mixtures in it", "needed", "MB"]
    header += ["fused", "int8", "MB", "merged", "MB", "held", "auto", "int8", "MB"]
    section = f"""## Switching: what a batch has to read and multiply

    python benchmarks/switching/limits.py

Counted, not timed: the linear layers of MiniLM-L6 ({MODEL_WEIGHTS / 1e6:.1f} M weights, float32), *tokens* of
each sample, without padding; seven samples in ten have one task, the others two. Multiply–adds are in
thousand millions. *Needed* is one product for each token with its mixture's matrix, the base read once and
each task's stored bits ({STORED_BITS} a weight). *Fused* adds int8 products with the tasks' deltas to the
base's products: *int8* counts multiply–adds of bytes, of which a processor does about four in the time of one
of float32. *Merged* reads a matrix for each mixture. *Auto* does so for the *held* mixtures, for which that
takes less time by the constants of processors without AMX, once they have come up often enough.

{table(header, body)}"""
    write_section("switching-limits", section)
    print(section)


if __name__ == "__main__":
    main()
