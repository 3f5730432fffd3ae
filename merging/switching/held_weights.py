"""A cache of whole weights, θ + λ Σ w τ, for mixtures that answer many tokens.

A row of such a mixture takes one product with each matrix, as in the restored model, and none with the base's
weights or the deltas. A task alone is a mixture too.
"""

from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock

from torch import Tensor

from flexswitch.merging.switching.mixtures import Factors, Weights, mixed
from flexswitch.merging.switching.task_deltas import TaskDeltas

_REMEMBERED = 4096  # mixtures whose gains are added up: weights may be any numbers


class HeldWeights:
    """The weights of as many mixtures as fit into `cache_bytes`. Thread-safe.

    base: tensor → the base's. A mixture is held once batches would have saved more than `cost` by it, the
    cost of making its weights; where there is no room it replaces the least recently used one. So mixtures
    that come up once, or alternate, cost little.
    """

    def __init__(self, base: Mapping[str, Tensor], deltas: TaskDeltas, cache_bytes: int, cost: float) -> None:
        self._base, self._deltas, self._cost = base, deltas, cost
        self._size = sum(tensor.nbytes for tensor in base.values())
        self.capacity = cache_bytes // self._size if self._size else 0
        self._held: OrderedDict[Factors, Weights] = OrderedDict()
        self._gains: OrderedDict[Factors, float] = OrderedDict()
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """The memory that the held weights take, or less where tasks do not change all tensors."""
        return len(self._held) * self._size

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
        tasks = [(self._deltas[task], factor) for task, factor in mixture]
        return {name: mixed(base, tasks, name) for name, base in self._base.items()}
