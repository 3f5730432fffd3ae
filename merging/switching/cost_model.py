"""What each engine would take for a batch, so that the cheaper one answers it.

Counted in products of one weight with one token, beyond those of the base, which both engines make, the fused
one without padding. What the batches hold and the kind of processor decide, never a clock.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexswitch.merging.switching.batch_plan import BatchPlan, TaskRows
from flexswitch.merging.switching.csr import CsrMatrix
from flexswitch.merging.switching.delta_matrix import DeltaMatrix, TransposedMatrix
from flexswitch.merging.switching.int8 import Int8Matrix
from flexswitch.merging.switching.merged_linear import shares_of_base


@dataclass(frozen=True)
class Costs:
    """Times over that of one weight's product with one more token of a large batch.

    kept: of a kept entry of sparse rows; side: of each of their rows and columns; code, value: of an entry
    kept as a byte, as a value; merged: of an entry of merged matrices, the tokens being gathered. However few
    the rows, of each weight: task: for a task in play; matrices: for a task's merged matrices, read from
    memory; group: for a group of equal weights; turn: that is changed from one mixture to the next. Whatever
    the model's size: task_calls, group_calls. The constants are what benchmarks/switching/fit.py found on an
    AMD EPYC (Zen 4), but for side, merged and matrices.
    """

    kept: float = 4.7
    side: float = 0.0
    code: float = 0.28
    value: float = 1.2
    merged: float = 1.1
    task: float = 3.0
    matrices: float = 12.0
    group: float = 4.0
    turn: float = 250.0
    task_calls: float = 1e8
    group_calls: float = 3e8


# An Intel Xeon (Emerald Rapids). Beside its float32 products those of few entries and of bytes are slow, on
# two threads more so than on the one that fit.py runs: kept, side and code are those of whole batches on two.
WITH_TILES = Costs(
    kept=9.0, side=160.0, code=1.0, value=1.6, merged=1.1, task=12.0, matrices=44.0, group=16.0,
    turn=180.0, task_calls=3e8, group_calls=5e8,
)  # fmt: skip


def costs_here() -> Costs:
    """Returns the constants for processors with tile instructions (AMX) on one that is known to have them."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return WITH_TILES if capabilities.get("amx_tile") else Costs()


class Choice(NamedTuple):
    """How a batch is answered. fused: by one pass for all rows; merged: task → what is gained, for each
    weight, where that pass takes the task's matrices merged with the base's.
    """

    fused: bool
    merged: Mapping[int, float]


class CostModel:
    """Weighs the engines against each other. Weights that came up lately are taken to be held still."""

    def __init__(self, products: Mapping[str, Tensor], held: int, merged: int, costs: Costs) -> None:
        """products: the units that inputs are multiplied by; held: mixtures kept; merged: tasks' matrices."""
        self._products, self._held, self._merged, self._costs = set(products), held, merged, costs
        self._weights = sum(tensor.numel() for tensor in products.values())
        self._recent: OrderedDict[bytes, None] = OrderedDict()
        self._lock = Lock()

    def choose(self, plan: BatchPlan, tokens: int) -> Choice:
        """Returns what takes the least time; tokens: of a row, padding among them."""
        costs, weights = self._costs, self._weights
        fused = (costs.task * weights + costs.task_calls) * len(plan.tasks)
        fused -= weights * plan.left_out(tokens)
        for task in plan.tasks:
            fused += weights * self._product(task.units) * task.count(tokens)
        merged = self._gains(plan, tokens)
        grouped = (costs.group * weights + costs.group_calls) * len(plan.vectors)
        grouped += costs.turn * weights * self._count_new(plan)
        return Choice(fused - weights * sum(merged.values()) < grouped, merged)

    def _gains(self, plan: BatchPlan, tokens: int) -> dict[int, float]:
        """Returns what each task's merged matrices save for each weight, of those that save anything.

        That is its own product, and the base's of the rows that then need none: a share of it that is the
        task's of the row. None where it all saves nothing, as where rows have many tasks.
        """
        if not self._merged:
            return {}
        few = self._costs.matrices - self._costs.task
        many = [task for task in plan.tasks if task.count(tokens) * self._product(task.units) > few]
        alone = shares_of_base(plan.count, many) == 0  # (row,)
        found = {}
        for task in many:
            own = TaskRows(task.number, {}, task.rows, task.factors * alone[task.rows], task.padding)
            product = self._product(task.units) - self._costs.merged
            found[task.number] = float(own.tokens(tokens)[1].sum()) + task.count(tokens) * product - few
        return found if sum(found.values()) > 0 else {}

    def _product(self, units: Mapping[str, DeltaMatrix]) -> float:
        """Returns what a token's products with a task's units take for each weight."""
        total = 0.0
        for name in self._products & units.keys():
            unit = units[name]
            inner = unit.inner if isinstance(unit, TransposedMatrix) else unit
            if isinstance(inner, CsrMatrix):
                total += self._costs.kept * len(inner.values) + self._costs.side * sum(inner.shape)
            else:
                each = self._costs.code if isinstance(inner, Int8Matrix) else self._costs.value
                total += each * inner.shape[0] * inner.shape[1]
        return total / max(1, self._weights)

    def _count_new(self, plan: BatchPlan) -> int:
        """Returns how many of the batch's weight vectors did not come up lately, and notes them all."""
        keys = [vector.tobytes() for vector in plan.vectors]
        with self._lock:
            new = sum(key not in self._recent for key in keys)
            for key in keys:
                self._recent[key] = None
                self._recent.move_to_end(key)
            while len(self._recent) > self._held:
                self._recent.popitem(last=False)
        return new
