"""Task arithmetic. Source: docs/methods.md §6.2; Ilharco et al. 2023 (arXiv 2212.04089)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor


def task_arithmetic(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    *,
    lambda_: Annotated[float, Field(description="Scale of the sum; a negative one unlearns.")] = 0.3,
) -> Tensor:
    """Returns λ Σ_k weight_k · τ_k."""
    total = torch.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights, strict=True):
        total += weight * delta
    return lambda_ * total
