"""A cache of merged weights, θ + τ, for tasks that answer many tokens.

A row of a single task then takes one product, as in the restored model, and none with the base's weights.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from threading import Lock

import torch
from torch import Tensor

from flexswitch.merging.switching.batch_plan import rounded_sum
from flexswitch.merging.switching.delta_matrix import DeltaMatrix
from flexswitch.merging.switching.task_deltas import TaskDeltas

Merged = Mapping[str, Tensor]  # tensor → θ + τ, in the base's shape and dtype


class MergedWeights:
    """The merged weights of as many tasks as fit into `cache_bytes`. Thread-safe.

    base: the weights of linear layers. A task is merged once batches would have saved more than
    `cost` by it, the cost of merging; where there is no room it replaces the least recently used task. So
    tasks that come up once, or alternate, cost little.
    """

    def __init__(self, base: Mapping[str, Tensor], deltas: TaskDeltas, cache_bytes: int, cost: float) -> None:
        self._base, self._deltas, self._cost = base, deltas, cost
        size = sum(tensor.numel() * tensor.element_size() for tensor in base.values())
        self.capacity = cache_bytes // size if size else 0
        self._kept: OrderedDict[int, Merged] = OrderedDict()
        self._gains: defaultdict[int, float] = defaultdict(float)
        self._lock = Lock()

    def get(self, gains: Mapping[int, float]) -> dict[int, Merged]:
        """Returns the merged weights of those tasks that have them.

        gains: task → the time that a batch would save for each weight, measured as `cost` is.
        """
        with self._lock:
            for task, gain in gains.items():
                self._gains[task] += gain
                if task in self._kept:
                    self._kept.move_to_end(task)
                elif self._gains[task] > self._cost and self._has_room(gains):
                    self._kept[task] = self._merge(task)
            return {task: self._kept[task] for task in gains if task in self._kept}

    def _has_room(self, gains: Mapping[int, float]) -> bool:
        """Makes room for another task unless that would drop a task of the same batch."""
        if len(self._kept) < self.capacity:
            return True
        oldest = next(iter(self._kept), None)
        if oldest is None or oldest in gains:
            return False
        del self._kept[oldest]
        self._gains[oldest] = 0
        return True

    def _merge(self, task: int) -> Merged:
        deltas = self._deltas[task]
        return {
            name: _merged(base, deltas[name], name) for name, base in self._base.items() if name in deltas
        }


def _merged(base: Tensor, delta: DeltaMatrix, name: str) -> Tensor:
    """Returns base + τ, computed in float32 or wider and rounded once to the base's dtype."""
    if base.dtype != torch.float32:
        return rounded_sum(base.detach(), delta.dense().view(base.shape), name)
    merged = base.detach().clone(memory_format=torch.contiguous_format)
    delta.add_to(merged.view(len(merged), -1).numpy(), 1.0)
    return merged
