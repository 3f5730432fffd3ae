"""Weight averaging. Source: docs/methods.md §6.1."""

from collections.abc import Sequence

import torch
from torch import Tensor


def average(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Returns the weighted mean of the deltas; with equal weights the mean of the models."""
    total = torch.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights, strict=True):
        total += weight * delta
    return total / sum(weights)
