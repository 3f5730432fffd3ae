"""What each engine would take for a batch, so that the cheaper one answers it.

Counted in products of one weight with one token, beyond those of the base, which both engines make, the fused
one without padding. What the batches hold decides, never a clock. The constants are fitted by
benchmarks/switching/fit.py.
"""

from collections import OrderedDict
from collections.abc import Mapping, Set
from dataclasses import dataclass
from threading import Lock

from flexswitch.merging.switching.dense_codes import DenseCodes
from flexswitch.merging.switching.row_plan import RowPlan
from flexswitch.merging.switching.sparse_rows import SparseRows
from flexswitch.merging.switching.unit_forms import TaskUnit, Turned


@dataclass(frozen=True)
class Costs:
    """Times over that of one weight's product with one more token of a large batch.

    kept: of a kept entry of sparse rows; code, value: of an entry kept as a byte, as a value; task, group: of
    each weight for a task in play, for a group of equal weights, however few their rows; turn: of a weight
    that is changed from one mixture to the next. Whatever the model's size: task_calls, group_calls.
    """

    kept: float = 4.7
    code: float = 0.28
    value: float = 1.2
    task: float = 3.0
    group: float = 4.0
    turn: float = 250.0
    task_calls: float = 1e8
    group_calls: float = 3e8


class Chooser:
    """Weighs the engines against each other. Weights that came up lately are taken to be held still."""

    def __init__(self, products: Set[str], weights: int, held: int, costs: Costs) -> None:
        """products: the units that inputs are multiplied by; weights: their entries; held: mixtures kept."""
        self._products, self._weights, self._held, self._costs = products, weights, held, costs
        self._recent: OrderedDict[bytes, None] = OrderedDict()
        self._lock = Lock()

    def prefers_fused(self, plan: RowPlan, tokens: int) -> bool:
        """Returns whether the fused engine takes less time; tokens: of a row, padding among them."""
        costs, weights = self._costs, self._weights
        fused = (costs.task * weights + costs.task_calls) * len(plan.tasks)
        fused -= weights * plan.left_out(tokens)
        for task in plan.tasks:
            fused += self._product(task.units) * task.count(tokens)
        grouped = (costs.group * weights + costs.group_calls) * len(plan.vectors)
        return fused < grouped + costs.turn * weights * self._count_new(plan)

    def _product(self, units: Mapping[str, TaskUnit]) -> float:
        total = 0.0
        for name in self._products & units.keys():
            unit = units[name]
            inner = unit.inner if isinstance(unit, Turned) else unit
            if isinstance(inner, SparseRows):
                total += self._costs.kept * len(inner.values)
            else:
                each = self._costs.code if isinstance(inner, DenseCodes) else self._costs.value
                total += each * inner.shape[0] * inner.shape[1]
        return total

    def _count_new(self, plan: RowPlan) -> int:
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
