"""Averages of the tasks' deltas in which each entry has a weight of its own, summed task by task."""

import torch
from torch import Tensor

from flexswitch.merging.exemplar_merges.task_module import Gradients
from flexswitch.merging.static.task_deltas import Combination, ModelDeltas, TensorDeltas


class WeightedAverage:
    """Σ_k s_k c_k τ_k / Σ_k c_k with a weight c_k for each entry, in float32."""

    def __init__(self, model: ModelDeltas) -> None:
        self._model = model
        self._sums = {name: torch.zeros(model.tensor(name).entries) for name in model.names}
        self._weights = {name: torch.zeros(model.tensor(name).entries) for name in model.names}

    def add(
        self, task: int, information: Gradients, floor: float, factor: float = 1.0, scale: float = 1.0
    ) -> None:
        """Adds a task's deltas with the weights c = factor · (information + floor), times `scale`.

        information: by tensor, 0 for those that it lacks.
        """
        for name in self._model.names:
            known, sums = information.get(name), self._sums[name]
            flat = torch.zeros(len(sums)) if known is None else known.cpu().reshape(-1)
            weights = (flat.to(torch.float64) + floor) * factor
            self._weights[name] += weights.to(torch.float32)
            start = 0
            for block in self._model.tensor(name).task_blocks(task):
                part = slice(start, start + len(block))
                sums[part] += (scale * weights[part] * torch.from_numpy(block)).to(torch.float32)
                start += len(block)

    def delta(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns a tensor's average, flat float32; 0 where all weights are 0."""
        weights = self._weights[name][start:stop]
        above = weights > 0
        return torch.where(above, self._sums[name][start:stop] / torch.where(above, weights, 1.0), 0.0)

    def combine(self, deltas: TensorDeltas) -> Combination:
        """Returns the combination of a tensor's deltas."""
        name = deltas.name
        return Combination(lambda block: self.delta(name, block.start, block.start + len(block.base)))
