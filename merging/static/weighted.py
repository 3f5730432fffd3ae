"""The weighted sum or mean of all tasks' trimmed deltas."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from flexswitch.merging.static.task_deltas import weighted_sum

Normalize = Annotated[bool, Field(description="Divide the sum by the sum of the tasks' weights.")]

_LEAST_TOTAL = 1e-8


def merge_weighted(deltas: Tensor, weights: Sequence[float], normalize: bool) -> Tensor:
    """Returns Σ_k w_k τ_k, or divided by Σ_k w_k unless that is zero; float32 (entry,)."""
    total = sum(weights)
    merged = weighted_sum(deltas, weights)
    return merged / total if normalize and abs(total) >= _LEAST_TOTAL else merged
