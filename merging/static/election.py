"""Elects a sign for each entry and merges the deltas that agree with it.

Source: Yadav et al. 2023, "TIES-Merging" (arXiv 2306.01708), sections 3.2 and 3.3; docs/methods.md §6.3.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from flexswitch.merging.static.task_deltas import weighted_sum

Election = Annotated[
    Literal["mass", "count"],
    Field(description="What votes for a sign: the sum of the deltas (mass), or the number of tasks."),
]
Merge = Annotated[
    Literal["mean", "sum", "max"],
    Field(description="What is taken of the deltas that agree: mean, sum, or the largest in magnitude."),
]


def elected_signs(deltas: Tensor, weights: Sequence[float], election: str) -> Tensor:
    """Returns the sign of each entry, −1, 0 or 1, (entry,); deltas: (task, entry)."""
    if election == "mass":
        return weighted_sum(deltas, weights).sign()
    return weighted_sum(deltas.sign(), [1.0 if weight >= 0 else -1.0 for weight in weights]).sign()


def merge_agreeing(
    deltas: Tensor, weights: Sequence[float], election: str, merge: str, tie: float = 1.0
) -> Tensor:
    """Returns the merged deltas whose sign is the elected one, float32 (entry,).

    A delta votes and is merged times its task's weight, and a mean is divided by the weights of the tasks
    that agree. deltas: (task, entry). tie: the sign where the votes are equal.
    """
    signs = elected_signs(deltas, weights, election)
    signs = torch.where(signs == 0, tie, signs)
    merged, shares = torch.zeros_like(signs), torch.zeros_like(signs)
    for delta, weight in zip(deltas, weights, strict=True):
        weighted = weight * delta
        agrees = weighted * signs > 0
        agreeing = torch.where(agrees, weighted, 0.0)
        if merge == "max":
            merged = torch.where(agreeing.abs() > merged.abs(), agreeing, merged)
        else:
            merged += agreeing
            shares += weight * agrees
    return merged / torch.where(shares == 0, 1.0, shares) if merge == "mean" else merged
