"""Consensus merging: entries that matter to fewer than k tasks are left out of a merge.

An entry matters to a task where its delta outweighs what the other tasks make of it (the TALL mask).
Source: Wang et al. 2024, "Localizing Task Information for Improved Model Merging" (arXiv 2405.07813);
docs/methods.md §6.12.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from flexswitch.codecs.errors import UsageError
from flexswitch.merging.methods.settings import ByTask
from flexswitch.merging.static.election import merge_agreeing
from flexswitch.merging.static.majority import majority
from flexswitch.merging.static.task_deltas import Block, Combination, TensorDeltas, weighted_sum
from flexswitch.merging.static.trimming import model_thresholds

K = Annotated[int, Field(ge=0, description="Number of tasks to which a kept entry matters, at least.")]
MaskLambda = Annotated[
    ByTask, Field(ge=0, description="How far |τ| exceeds the rest of the merge where an entry matters.")
]
Lambda = Annotated[float, Field(description="Scale of the merged delta.")]


def consensus_ta(
    deltas: TensorDeltas, *, k: K = 2, mask_lambda: MaskLambda = 0.4, lambda_: Lambda = 0.3
) -> Combination:
    """Returns λ times the sum of the deltas, where it matters to k tasks."""

    def merge(block: Block) -> Tensor:
        return weighted_sum(block.deltas, deltas.weights)

    return _agreed(deltas, merge, k, deltas.by_task(mask_lambda), lambda_)


def consensus_ties(
    deltas: TensorDeltas,
    *,
    k: K = 2,
    mask_lambda: MaskLambda = 0.4,
    density: Annotated[ByTask, Field(ge=0, le=1, description="Share of the model that TIES keeps.")] = 0.2,
    lambda_: Lambda = 0.3,
) -> Combination:
    """Returns λ times the sum that TIES-Merging makes of the deltas, where it matters to k tasks."""
    densities = deltas.by_task(density)
    least = model_thresholds(deltas.model, densities)
    tie = majority(deltas.model, least, densities, "mass")
    thresholds = torch.tensor(least, dtype=torch.float32)[:, None]  # (task, 1)

    def merge(block: Block) -> Tensor:
        trimmed = torch.where(block.deltas.abs() >= thresholds, block.deltas, 0.0)
        return merge_agreeing(trimmed, deltas.weights, "mass", "sum", tie)

    return _agreed(deltas, merge, k, deltas.by_task(mask_lambda), lambda_)


def _agreed(
    deltas: TensorDeltas,
    merge: Callable[[Block], Tensor],
    k: int,
    mask_lambdas: Sequence[float],
    lambda_: float,
) -> Combination:
    """Returns the merge without the entries that matter to fewer than k tasks.

    Raises: UsageError where there are fewer than k tasks, and so nothing to keep.
    """
    if k > (count := len(deltas.weights)):
        method = deltas.model.method
        raise UsageError(f"k={k}: {method} keeps what matters to so many tasks, expected at most {count}")

    def combine(block: Block) -> Tensor:
        merged = merge(block)
        count = torch.zeros(len(merged), dtype=torch.int32)
        for delta, weight, factor in zip(block.deltas, deltas.weights, mask_lambdas, strict=True):
            own = weight * delta
            count += own.abs() > factor * (merged - own).abs()
        return torch.where(count >= k, lambda_ * merged, 0.0)

    return Combination(combine)
