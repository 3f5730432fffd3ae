"""Task arithmetic. Source: Ilharco et al. 2023 (arXiv 2212.04089); docs/methods.md §6.2."""

from typing import Annotated

from pydantic import Field

from flexswitch.merging.static.task_deltas import Combination, TensorDeltas, weighted_sum


def task_arithmetic(
    deltas: TensorDeltas,
    *,
    lambda_: Annotated[float, Field(description="Scale of the sum; a negative one unlearns.")] = 0.3,
) -> Combination:
    """Returns λ Σ_k weight_k · τ_k; weights such as 1, −1, 1 make an analogy."""
    return Combination(lambda block: lambda_ * weighted_sum(block.deltas, deltas.weights))
