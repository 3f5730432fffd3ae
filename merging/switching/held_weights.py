"""A cache of whole weights, θ + λ Σ w τ, for mixtures that answer many tokens.

A row of such a mixture takes one product with each matrix, as in the restored model, and none with the base's
weights or the deltas. A task alone is a mixture too. In a small model, calls for each tensor would take most
of the time that new weights take, so they are made in one piece there, from the tasks' whole deltas.
"""

from collections import OrderedDict
from collections.abc import Mapping, Set
from functools import lru_cache
from threading import Lock

import torch
from torch import Tensor

from flexswitch.merging.switching.mixtures import Factors, Weights, mixed
from flexswitch.merging.switching.task_deltas import TaskDeltas

_REMEMBERED = 4096  # mixtures whose gains are added up: weights may be any numbers
_SMALL_BYTES = 4 << 20  # of all weights: above, calls take little of the time
_WHOLE_DELTAS = 64  # tasks whose deltas are kept whole


def is_small(base: Mapping[str, Tensor]) -> bool:
    """Returns whether the weights of mixtures are made in one piece."""
    size = sum(tensor.nbytes for tensor in base.values())
    kinds = {(tensor.dtype, tensor.device.type) for tensor in base.values()}
    return size <= _SMALL_BYTES and kinds == {(torch.float32, "cpu")}


class HeldWeights:
    """The weights of as many mixtures as fit into `cache_bytes`. Thread-safe.

    base: tensor → the base's; by_columns: the weights of linear layers, which are stored so in a small model,
    as small products then take less time. A mixture is held once batches would have saved more than `cost` by
    it, the cost of making its weights; where there is no room it replaces the least recently used one. So
    mixtures that come up once, or alternate, cost little. Whole deltas take up to a sixteenth more.
    """

    def __init__(
        self,
        base: Mapping[str, Tensor],
        deltas: TaskDeltas,
        cache_bytes: int,
        cost: float,
        by_columns: Set[str] = frozenset(),
    ) -> None:
        self._base, self._deltas, self._cost, self._by_columns = base, deltas, cost, by_columns
        self._size = sum(tensor.nbytes for tensor in base.values())
        self.capacity = cache_bytes // self._size if self._size else 0
        self._held: OrderedDict[Factors, Weights] = OrderedDict()
        self._gains: OrderedDict[Factors, float] = OrderedDict()
        self._lock = Lock()
        self._flat = self._in_one_piece(base) if is_small(base) else None
        self._whole_delta = lru_cache(min(_WHOLE_DELTAS, self.capacity // 16))(self._made_whole)

    @property
    def nbytes(self) -> int:
        """The memory that the held weights and whole deltas take."""
        return (len(self._held) + self._whole_delta.cache_info().currsize) * self._size

    def get(self, gains: Mapping[Factors, float]) -> dict[Factors, Weights]:
        """Returns the weights of those mixtures that are held.

        gains: mixture → the time that a batch would save for each weight, measured as `cost` is.
        """
        if not self.capacity:
            return {}
        with self._lock:
            for mixture, gain in gains.items():
                if mixture in self._held:
                    self._held.move_to_end(mixture)
                elif self._added(mixture, gain) > self._cost and self._has_room(gains):
                    del self._gains[mixture]
                    self._held[mixture] = self.made(mixture)
            return {mixture: self._held[mixture] for mixture in gains if mixture in self._held}

    def of(self, mixture: Factors) -> Weights:
        """Returns the weights of one mixture, which are held from now on where any fit."""
        found = self.get({mixture: float("inf")}).get(mixture)
        return self.made(mixture) if found is None else found

    def _added(self, mixture: Factors, gain: float) -> float:
        """Returns what batches would have saved so far by a mixture that is not held."""
        self._gains[mixture] = self._gains.pop(mixture, 0.0) + gain
        if len(self._gains) > _REMEMBERED:
            self._gains.popitem(last=False)
        return self._gains[mixture]

    def _has_room(self, gains: Mapping[Factors, float]) -> bool:
        """Makes room for another mixture unless that would drop one of the same batch."""
        if len(self._held) < self.capacity:
            return True
        if next(iter(self._held)) in gains:
            return False
        self._held.popitem(last=False)
        return True

    def made(self, mixture: Factors) -> Weights:
        """Returns the weights of a mixture, made anew, whether its tasks change them or not.

        So a layer that changes its own weights, such as an embedding with a max_norm, never has the base's.
        """
        if self._flat is None:
            tasks = [(self._deltas[task], factor) for task, factor in mixture]
            return {name: mixed(base, tasks, name) for name, base in self._base.items()}
        flat = self._flat.clone()
        for task, factor in mixture:
            flat.add_(self._whole_delta(task), alpha=factor)
        parts = flat.split_with_sizes([base.numel() for base in self._base.values()])
        return {
            name: part.view(base.shape[::-1]).t() if name in self._by_columns else part.view(base.shape)
            for (name, base), part in zip(self._base.items(), parts, strict=True)
        }

    def _made_whole(self, task: int) -> Tensor:
        """Returns a task's change to all tensors."""
        deltas = self._deltas[task]
        return self._in_one_piece({name: deltas[name].dense() for name in self._base if name in deltas})

    def _in_one_piece(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Returns the entries of some of the base's tensors, with zeros for the others, as one vector."""
        parts = []
        for name, base in self._base.items():
            tensor = tensors[name].reshape(base.shape) if name in tensors else torch.zeros(base.shape)
            parts.append((tensor.t() if name in self._by_columns else tensor).reshape(-1))
        return torch.cat(parts)
