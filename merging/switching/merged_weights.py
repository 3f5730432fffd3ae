"""The matrices of layers with a task's part in them, θ + τ, for tasks that many tokens go through.

What a row of one task alone takes is then one product, as in the restored model, and none with the base's.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from threading import Lock

import torch
from torch import Tensor

from flexswitch.merging.switching.batch_plan import rounded_sum
from flexswitch.merging.switching.delta_matrix import DeltaMatrix
from flexswitch.merging.switching.task_deltas import TaskDeltas

Matrices = Mapping[str, Tensor]  # unit → θ + τ, in the base's shape and dtype


class MergedWeights:
    """Keeps whole matrices of some tasks, within so many bytes; several threads may ask at a time.

    base: the units that layers multiply by, the base's tensors. A task's matrices are made once batches would
    have gained more by them than `turn`, the cost of making them; where there is no room they replace those
    that were asked for longest ago. So tasks that come up once, or take turns, cost little.
    """

    def __init__(self, base: Mapping[str, Tensor], units: TaskDeltas, cache_bytes: int, turn: float) -> None:
        self._base, self._units, self._turn = base, units, turn
        size = sum(tensor.numel() * tensor.element_size() for tensor in base.values())
        self.most = cache_bytes // size if size else 0
        self._kept: OrderedDict[int, Matrices] = OrderedDict()
        self._gains: defaultdict[int, float] = defaultdict(float)
        self._lock = Lock()

    def of(self, gains: Mapping[int, float]) -> dict[int, Matrices]:
        """Returns the matrices of some tasks, of those for which there are any.

        gains: task → what a batch would gain by them, for each weight, in the unit of `turn`.
        """
        with self._lock:
            for task, gain in gains.items():
                self._gains[task] += gain
                if task in self._kept:
                    self._kept.move_to_end(task)
                elif self._gains[task] > self._turn and self._has_room(gains):
                    self._kept[task] = self._made(task)
            return {task: self._kept[task] for task in gains if task in self._kept}

    def _has_room(self, gains: Mapping[int, float]) -> bool:
        """Makes room for another task where there is none; a task of the same batch is not driven out."""
        if len(self._kept) < self.most:
            return True
        oldest = next(iter(self._kept), None)
        if oldest is None or oldest in gains:
            return False
        del self._kept[oldest]
        self._gains[oldest] = 0
        return True

    def _made(self, task: int) -> Matrices:
        units = self._units[task]
        return {unit: _merged(base, units[unit]) for unit, base in self._base.items() if unit in units}


def _merged(base: Tensor, unit: DeltaMatrix) -> Tensor:
    """Returns base + τ, computed in float32 or wider and rounded once to the base's dtype."""
    if base.dtype != torch.float32:
        return rounded_sum(base.detach(), unit.dense().view(base.shape))
    merged = base.detach().clone(memory_format=torch.contiguous_format)
    unit.add_to(merged.view(len(merged), -1).numpy(), 1.0)
    return merged
