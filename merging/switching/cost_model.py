"""The time that each engine would take for a batch, so that the cheapest one answers it.

Times are multiples of the product of one weight with one token, beyond the products with the base's weights,
which both engines compute, the fused one without padding. The batch and the kind of processor decide, never a
clock.
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
from flexswitch.merging.switching.delta_matrix import DeltaMatrix, untransposed
from flexswitch.merging.switching.int8 import Int8Matrix
from flexswitch.merging.switching.merged_linear import shares_of_base


@dataclass(frozen=True)
class Costs:
    """Times as multiples of one weight's product with one more token of a large batch.

    For each token: csr_entry, int8_entry, float32_entry: an entry of a delta matrix in that form; csr_side:
    a row or column of a CSR matrix; merged_entry: an entry of merged weights.
    For each weight of the model, whatever the tokens: task: a task with rows in the batch; merged_task: a
    task by its merged weights, which are read from memory; mixture: a group of rows with equal mixtures;
    new_mixture: rewriting a held module, or merging a task. Whatever the model's size: task_calls,
    mixture_calls. The defaults, but for csr_side, merged_entry and merged_task, are what
    benchmarks/switching/fit.py measured on an AMD EPYC (Zen 4).
    """

    csr_entry: float = 4.7
    csr_side: float = 0.0
    int8_entry: float = 0.28
    float32_entry: float = 1.2
    merged_entry: float = 1.1
    task: float = 3.0
    merged_task: float = 12.0
    mixture: float = 4.0
    new_mixture: float = 250.0
    task_calls: float = 1e8
    mixture_calls: float = 3e8


# An Intel Xeon (Emerald Rapids). CSR and int8 products are slow there compared with float32 ones, and slower
# on two threads than on the one that fit.py uses: csr_entry, csr_side and int8_entry were measured on two.
WITH_TILES = Costs(
    csr_entry=9.0, csr_side=160.0, int8_entry=1.0, float32_entry=1.6, merged_entry=1.1, task=12.0,
    merged_task=44.0, mixture=16.0, new_mixture=180.0, task_calls=3e8, mixture_calls=5e8,
)  # fmt: skip


def costs_here() -> Costs:
    """Returns the costs for this processor: WITH_TILES where it is known to have tile instructions (AMX)."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return WITH_TILES if capabilities.get("amx_tile") else Costs()


class Choice(NamedTuple):
    """How a batch is answered.

    fused: whether by the fused engine; merged: task → the time saved, for each weight, if the fused engine
    uses the task's merged weights.
    """

    fused: bool
    merged: Mapping[int, float]


class CostModel:
    """Compares the engines. Mixtures that came up recently are assumed to be held by the grouped engine."""

    def __init__(self, matrices: Mapping[str, Tensor], held: int, merged: int, costs: Costs) -> None:
        """matrices: the weights of linear layers; held: the mixtures that fit; merged: the tasks that fit."""
        self._names, self._held, self._merged, self._costs = set(matrices), held, merged, costs
        self._weights = sum(tensor.numel() for tensor in matrices.values())
        self._recent: OrderedDict[bytes, None] = OrderedDict()
        self._lock = Lock()

    def choose(self, plan: BatchPlan, tokens: int) -> Choice:
        """Returns the cheapest way to answer a batch; tokens: those of a row, with padding."""
        costs, weights = self._costs, self._weights
        fused = (costs.task * weights + costs.task_calls) * len(plan.tasks)
        fused -= weights * plan.removed(tokens)
        for task in plan.tasks:
            fused += weights * self._product(task.deltas) * task.token_count(tokens)
        merged = self._savings(plan, tokens)
        grouped = (costs.mixture * weights + costs.mixture_calls) * len(plan.mixtures)
        grouped += costs.new_mixture * weights * self._count_new(plan)
        return Choice(fused - weights * sum(merged.values()) < grouped, merged)

    def _savings(self, plan: BatchPlan, tokens: int) -> dict[int, float]:
        """Returns what each task's merged weights save for each weight, for tasks where they save anything.

        They save the task's own product, and its share of the base's product for rows that then need none.
        Returns nothing where the sum is no saving, as where rows mix many tasks.
        """
        if not self._merged:
            return {}
        overhead = self._costs.merged_task - self._costs.task
        large = [
            task for task in plan.tasks if task.token_count(tokens) * self._product(task.deltas) > overhead
        ]
        alone = shares_of_base(plan.count, large) == 0  # (row,)
        found = {}
        for task in large:
            own = TaskRows(task.number, {}, task.rows, task.factors * alone[task.rows], task.padding)
            product = self._product(task.deltas) - self._costs.merged_entry
            base = float(own.tokens(tokens)[1].sum())
            found[task.number] = base + task.token_count(tokens) * product - overhead
        return found if sum(found.values()) > 0 else {}

    def _product(self, deltas: Mapping[str, DeltaMatrix]) -> float:
        """Returns the time of a token's products with a task's deltas, for each weight."""
        total = 0.0
        for name in self._names & deltas.keys():
            matrix = untransposed(deltas[name])
            rows, columns = matrix.shape
            if isinstance(matrix, CsrMatrix):
                total += self._costs.csr_entry * len(matrix.values) + self._costs.csr_side * (rows + columns)
            elif isinstance(matrix, Int8Matrix):
                total += self._costs.int8_entry * rows * columns
            else:
                total += self._costs.float32_entry * rows * columns
        return total / max(1, self._weights)

    def _count_new(self, plan: BatchPlan) -> int:
        """Returns how many of the batch's mixtures did not come up recently, and records them all."""
        keys = [mixture.tobytes() for mixture in plan.mixtures]
        with self._lock:
            new = sum(key not in self._recent for key in keys)
            for key in keys:
                self._recent[key] = None
                self._recent.move_to_end(key)
            while len(self._recent) > self._held:
                self._recent.popitem(last=False)
        return new
