"""Reinforced agent merging: what only one task changed is kept whole, what several changed is averaged.

Source: "Reinforced Agent Merging" (arXiv 2601.13572); docs/methods.md §6.20.
"""

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from flexswitch.merging.static.task_deltas import Block, Combination, TensorDeltas

Epsilon = Annotated[float, Field(ge=0, description="A change of at most this counts as none.")]


def ram(deltas: TensorDeltas, *, epsilon: Epsilon = 1e-5) -> Combination:
    """Returns each entry's mean over the tasks that changed it."""
    ones = [1.0] * len(deltas.weights)
    return Combination(lambda block: _mean_of_changed(block, epsilon, ones))


def ram_plus(
    deltas: TensorDeltas,
    *,
    r: Annotated[float, Field(ge=0, description="Growth of a task's own changes.")] = 0.1,
    alpha: Annotated[float, Field(ge=0, description="Largest ratio of shared to own changes.")] = 0.2,
    epsilon: Epsilon = 1e-5,
) -> Combination:
    """Returns ram's merge with each task's own changes times 1 + r · min(shared / own, alpha).

    shared and own: the numbers of the tensor's entries that other tasks changed too, and that only the task
    changed.
    """
    shared, own = np.zeros(len(deltas.weights), np.int64), np.zeros(len(deltas.weights), np.int64)
    for block in deltas.blocks():
        changed = block.deltas.abs() > epsilon  # (task, entry)
        counts = changed.sum(dim=0)
        shared += (changed & (counts > 1)).sum(dim=1).numpy()
        own += (changed & (counts == 1)).sum(dim=1).numpy()
    ratios = shared / np.maximum(own, max(epsilon, 1e-300))
    factors = (1 + r * np.minimum(ratios, alpha)).tolist()
    return Combination(lambda block: _mean_of_changed(block, epsilon, factors))


def _mean_of_changed(block: Block, epsilon: float, factors: list[float]) -> Tensor:
    """Returns the mean of the changed entries; factors: of those that one task alone changed."""
    changed = block.deltas.abs() > epsilon
    counts = changed.sum(dim=0)
    merged = torch.zeros(block.deltas.shape[1])
    for delta, marks, factor in zip(block.deltas, changed, factors, strict=True):
        merged += torch.where(marks, torch.where(counts == 1, factor * delta, delta), 0.0)
    return merged / counts.clamp(min=1)
