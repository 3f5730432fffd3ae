"""What is taken of the tasks' deltas: read again at each step of a training, or held in memory if it fits."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.sums import Doubles, steady_sum
from flexswitch.merging.exemplar_merges.task_module import Gradients
from flexswitch.merging.static.task_deltas import Block, Combination, ModelDeltas, Trim, weighted_sum

Keep = Callable[[str, Block], Tensor]  # (tensor, block) → what is taken of its deltas, (task, entry)


class KeptDeltas:
    """The deltas of all tasks side by side, after a trim and a further choice."""

    def __init__(self, model: ModelDeltas, keep: Keep, trim: Trim | None = None) -> None:
        self.model, self._keep, self._trim = model, keep, trim
        self._held: dict[str, list[Block]] = {}
        self._free = model.memory

    def combination(self, name: str, coefficients: Sequence[float]) -> Combination:
        """Returns the combination Σ_k λ_k τ'_k of a tensor."""
        return Combination(lambda block: weighted_sum(self._keep(name, block), coefficients), self._trim)

    def write_sum(
        self, name: str, coefficients: Sequence[float], weights: Tensor, mask: Tensor | None = None
    ) -> None:
        """Sets a tensor's weights to θ + m ⊙ Σ_k λ_k τ'_k, in place. mask: m, flat; None for ones."""
        flat = weights.view(-1)
        for block in self._blocks(name):
            part = slice(block.start, block.start + len(block.base))
            merged = weighted_sum(block.deltas, coefficients)
            flat[part] = (block.base + (merged if mask is None else merged * mask[part])).to(flat.device)

    def summed(self, name: str, coefficients: Sequence[float]) -> Tensor:
        """Returns Σ_k λ_k τ'_k of a tensor, flat float32."""
        return torch.cat([weighted_sum(block.deltas, coefficients) for block in self._blocks(name)])

    def products(self, name: str, gradients: Gradients) -> NDArray[np.float64]:
        """Returns Σ gradient · τ'_k of a tensor for each task, (task,), in float64."""
        tasks = range(len(self.model.tasks))
        if name not in gradients:
            return np.zeros(len(tasks))
        flat = gradients[name].reshape(-1).cpu().numpy().astype(np.float64)

        def of_task(task: int) -> Iterator[Doubles]:
            for block in self._blocks(name):
                delta = block.deltas[task].numpy()
                yield delta * flat[block.start : block.start + len(delta)]

        return np.array([steady_sum(of_task(task)) for task in tasks])

    def _blocks(self, name: str) -> Iterator[Block]:
        """Yields the blocks of a tensor, with what is taken of its deltas."""
        if name in self._held:
            yield from self._held[name]
            return
        deltas = self.model.tensor(name)
        needed = 4 * deltas.entries * (len(self.model.tasks) + 1)
        kept: list[Block] | None = [] if needed <= self._free else None
        for block in deltas.blocks(self._trim):
            made = Block(block.start, self._keep(name, block), block.base)
            if kept is not None:
                kept.append(made)
            yield made
        if kept is not None:
            self._held[name], self._free = kept, self._free - needed
