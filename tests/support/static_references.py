"""Every static merge written anew in plain numpy and float64, on whole models, for the tests that compare.

Each function is called as its method, with `_` for `-`, and returns the merged weights by name.
"""

from dataclasses import dataclass, field
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


def average(case: Case) -> Weights:
    return linear(case)


def linear(case: Case) -> Weights:
    models = [{name: case.base[name] + delta[name] for name in case.base} for delta in case.deltas]
    total = sum(case.weights) if case.get("normalize", True) else 1.0
    return {
        name: sum(weight * model[name] for weight, model in zip(case.weights, models, strict=True)) / total
        for name in case.base
    }


def task_arithmetic(case: Case) -> Weights:
    scale = case.get("lambda", 0.3)
    return {name: weights + scale * case.weighted(name).sum(axis=0) for name, weights in case.base.items()}
