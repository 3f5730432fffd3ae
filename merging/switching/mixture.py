"""Weights of a mixture of tasks: θ + λ Σ_k w_k τ̂_k, materialised from flat vectors.

Source: methods, §3.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flexswitch.merging.task_vector import TaskVector

_CACHE_BYTES = 4 << 30


class Mixture:
    """The base's units and the tasks' deltas, each as one flat float32 vector.

    Decoded deltas are kept while they fit into `cache_bytes`, the least recently used going first.
    """

    def __init__(
        self,
        base: Mapping[str, Tensor],
        vectors: Sequence[TaskVector],
        lambda_: float = 1.0,
        cache_bytes: int = _CACHE_BYTES,
    ) -> None:
        changed = set().union(*(vector.units for vector in vectors))
        self._shapes = {name: tensor.shape for name, tensor in base.items() if name in changed}
        flat = [base[name].reshape(-1).float() for name in self._shapes]
        self._base = torch.cat(flat) if flat else torch.empty(0)  # (parameter,)
        self._vectors = vectors
        self._lambda = lambda_
        self._cache_bytes = cache_bytes
        self._deltas: OrderedDict[int, Tensor] = OrderedDict()

    @property
    def units(self) -> list[str]:
        """The base names that `weights` returns."""
        return list(self._shapes)

    def weights(self, shares: Sequence[float]) -> dict[str, Tensor]:
        """Returns the changed units by base name for one share a task; the tensors share one buffer."""
        mixed = self._base.clone()  # (parameter,)
        for task, share in enumerate(shares):
            if share:
                mixed.add_(self._delta(task), alpha=self._lambda * share)
        views = torch.split(mixed, [shape.numel() for shape in self._shapes.values()])
        return {
            name: view.view(shape) for (name, shape), view in zip(self._shapes.items(), views, strict=True)
        }

    def _delta(self, task: int) -> Tensor:
        if task not in self._deltas:
            size = self._base.numel() * 4
            while self._deltas and (len(self._deltas) + 1) * size > self._cache_bytes:
                self._deltas.popitem(last=False)
            self._deltas[task] = self._decode(self._vectors[task])
        self._deltas.move_to_end(task)
        return self._deltas[task]

    def _decode(self, vector: TaskVector) -> Tensor:
        flat = torch.zeros_like(self._base)
        start = 0
        for name, shape in self._shapes.items():
            position = start
            for block in vector.blocks(name) if name in vector.units else ():
                flat[position : position + len(block)] = torch.from_numpy(block)
                position += len(block)
            start += shape.numel()
        return flat
