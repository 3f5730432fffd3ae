"""Task arithmetic. Source: Ilharco et al. 2023 (arXiv 2212.04089); docs/methods.md §6.2."""

from typing import Annotated

from pydantic import Field

from flexswitch.merging.static.task_deltas import Combination, TensorDeltas
from flexswitch.merging.static.weighted import Normalize, merge_weighted


def task_arithmetic(
    deltas: TensorDeltas,
    *,
    normalize: Normalize = False,
    lambda_: Annotated[float, Field(description="Scale of the sum; a negative one unlearns.")] = 0.3,
) -> Combination:
    """Returns λ Σ_k weight_k · τ_k; weights such as 1, −1, 1 make an analogy."""
    return Combination(lambda block: lambda_ * merge_weighted(block.deltas, deltas.weights, normalize))
