"""The time that a batch would save by whole weights of its mixtures, in place of the base's and the deltas.

Times are multiples of the product of one weight with one token. The batch and the kind of processor decide,
never a clock.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexswitch.merging.switching.batch_plan import BatchPlan
from flexswitch.merging.switching.csr import CsrMatrix
from flexswitch.merging.switching.delta_matrix import DeltaMatrix, untransposed
from flexswitch.merging.switching.int8 import Int8Matrix
from flexswitch.merging.switching.low_rank_matrix import LowRankMatrix
from flexswitch.merging.switching.mixtures import Factors, parts_of
from flexswitch.merging.switching.multiple_matrix import MultipleMatrix
from flexswitch.merging.switching.sum_matrix import SumMatrix


@dataclass(frozen=True)
class Costs:
    """Times as multiples of one weight's product with one more token of a large batch.

    For each token: csr_entry, int8_entry, float32_entry: an entry of a delta matrix in that form; csr_side:
    a row or column of a CSR matrix; held_entry: an entry of a mixture's own weights; added_entry: adding the
    product with such an entry to others. For each weight of the model, whatever the tokens: task: a task with
    rows in the batch; held_mixture: a mixture's own weights, which are read from memory; new_mixture: making
    them; new_small_mixture: making those of a small model, in one piece. Whatever the model's size:
    task_calls. The defaults, but for csr_side, held_entry, added_entry, held_mixture and new_small_mixture,
    are what benchmarks/switching/fit.py measured on an AMD EPYC (Zen 4).
    """

    csr_entry: float = 4.7
    csr_side: float = 0.0
    int8_entry: float = 0.28
    float32_entry: float = 1.2
    held_entry: float = 1.1
    added_entry: float = 0.1
    task: float = 3.0
    held_mixture: float = 12.0
    new_mixture: float = 250.0
    new_small_mixture: float = 30.0
    task_calls: float = 1e8


# An Intel Xeon (Emerald Rapids). CSR and int8 products are slow there compared with float32 ones, and slower
# on two threads than on the one that fit.py uses: csr_entry, csr_side and int8_entry were measured on two.
WITH_TILES = Costs(
    csr_entry=9.0, csr_side=160.0, int8_entry=1.0, float32_entry=1.6, held_entry=1.1, task=12.0,
    held_mixture=44.0, new_mixture=180.0, task_calls=3e8,
)  # fmt: skip


def costs_here() -> Costs:
    """Returns the costs for this processor: WITH_TILES where it is known to have tile instructions (AMX)."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return WITH_TILES if capabilities.get("amx_tile") else Costs()


class Gains(NamedTuple):
    """by_mixture: the mixtures whose whole weights would save time, and how much for each weight.

    summed: the numbers of those mixtures of a batch that save time by weights of each of their tasks.
    """

    by_mixture: dict[Factors, float]
    summed: set[int]


class CostModel:
    """Estimates what a batch would save by whole weights of its mixtures."""

    def __init__(self, matrices: Mapping[str, Tensor], costs: Costs, sums: bool = True) -> None:
        """matrices: the weights of linear layers; sums: whether a mixture may take a product for each task.

        In a small model that takes more calls than making the mixture's own weights.
        """
        self._names, self._costs, self._sums = set(matrices), costs, sums
        self._products: dict[int, float] = {}  # of each task that came up
        self._weights = sum(tensor.numel() for tensor in matrices.values())

    def gains(self, plan: BatchPlan, tokens: int, steps: int = 0) -> Gains:
        """Returns what whole weights would save: the products with the base and with the tasks' deltas.

        Those of a mixture of several tasks save the products with weights of each of them alone. tokens:
        those of a row, with padding; steps: the passes that follow, each of one more token of every row.
        """
        costs, weights = self._costs, max(1, self._weights)
        for task, deltas in plan.deltas.items():
            if task not in self._products:
                self._products[task] = self._product(deltas)
        uses = Counter(task for mixture in plan.factors for task, _ in mixture)  # mixtures share its calls
        fixed = (1 + steps) * (costs.task + costs.task_calls / weights)
        held = (1 + steps) * costs.held_mixture
        count = (plan.token_counts(tokens) + steps * plan.row_counts()).tolist()
        fused = [
            count[number] * (1 + sum(self._products[task] for task, _ in mixture))
            + sum(fixed / uses[task] for task, _ in mixture)
            for number, mixture in enumerate(plan.factors)
        ]
        split = [
            (parts_of(mixture, plan.scale) if self._sums else []) or [(mixture, 1.0)]
            for mixture in plan.factors
        ]

        def saved(number: int, users: Mapping[Factors, int]) -> float:
            """Returns what weights of each of a mixture's tasks save; users of a matrix share its reading."""
            parts = split[number]
            each = costs.held_entry + costs.added_entry * (len(parts) > 1)
            reading = sum(held / users[part] for part, _ in parts)
            return float(fused[number] - count[number] * each * len(parts) - reading)

        users = Counter(part for parts in split for part, _ in parts)
        pays = {number for number in range(len(split)) if saved(number, users) > 0}
        users = Counter(part for number in pays for part, _ in split[number])
        found = dict.fromkeys(users, 0.0)
        for number, parts in enumerate(split):
            if number in pays:
                for part, _ in parts:
                    found[part] += saved(number, users) / len(parts)
            if len(parts) > 1:
                alone = fused[number] - count[number] * costs.held_entry - held
                found[plan.factors[number]] = alone - (
                    max(0.0, saved(number, users)) if number in pays else 0.0
                )
        gains = {mixture: gain for mixture, gain in found.items() if mixture and gain > 0}
        return Gains(gains, {number for number in pays if len(split[number]) > 1})

    def _product(self, deltas: Mapping[str, DeltaMatrix]) -> float:
        """Returns the time of a token's products with a task's deltas, for each weight."""
        found = [self._matrix(untransposed(deltas[name])) for name in sorted(self._names & deltas.keys())]
        return sum(found) / max(1, self._weights)

    def _matrix(self, matrix: DeltaMatrix) -> float:
        """Returns the time of a token's product with a matrix."""
        rows, columns = matrix.shape
        if isinstance(matrix, CsrMatrix):
            return self._costs.csr_entry * len(matrix.values) + self._costs.csr_side * (rows + columns)
        if isinstance(matrix, Int8Matrix):
            return self._costs.int8_entry * rows * columns
        if isinstance(matrix, LowRankMatrix):
            return self._costs.float32_entry * (matrix.left.size + matrix.right.size)
        if isinstance(matrix, MultipleMatrix):  # of the product with the base
            return 0.0
        if isinstance(matrix, SumMatrix):
            return sum(self._matrix(part) for part in matrix.parts)
        return self._costs.float32_entry * rows * columns
