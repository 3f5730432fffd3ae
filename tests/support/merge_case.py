"""A merge of whole models in float64, as the plain references of the static methods take it."""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Weights = dict[str, Floats]


@dataclass
class Case:
    """A base, the deltas of the tasks, their weights and the method's settings, which need not be given."""

    base: Weights
    deltas: list[Weights]
    weights: list[float]
    settings: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any) -> Any:
        return self.settings.get(name, default)

    def stacked(self, name: str) -> Floats:
        """Returns a tensor's deltas, (task, ...)."""
        return np.array([delta[name] for delta in self.deltas])

    def weighted(self, name: str) -> Floats:
        """Returns a tensor's deltas times the tasks' weights, (task, ...)."""
        stacked = self.stacked(name)
        return stacked * np.reshape(self.weights, (-1, *[1] * (stacked.ndim - 1)))


def floor_of(share: float, count: int) -> int:
    return int(Decimal(str(share)) * count)
