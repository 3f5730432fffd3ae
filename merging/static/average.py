"""Weight averaging. Source: Wortsman et al. 2022 (arXiv 2203.05482); docs/methods.md §6.1."""

from functools import partial as bind
from typing import Annotated

from pydantic import Field
from torch import Tensor

from flexswitch.codecs.errors import UsageError
from flexswitch.merging.static.task_deltas import Block, Combination, TensorDeltas, weighted_sum


def average(deltas: TensorDeltas) -> Combination:
    """Returns the weighted mean of the models; with equal weights their mean.

    Raises: UsageError where the weights sum to zero.
    """
    return linear(deltas)


def linear(
    deltas: TensorDeltas,
    *,
    normalize: Annotated[bool, Field(description="Divide the weights by their sum.")] = True,
) -> Combination:
    """Returns Σ_k w_k θ_k, with the weights divided by their sum unless `normalize` is false.

    Raises: UsageError where the weights sum to zero.
    """
    total = sum(deltas.weights)
    if not normalize:
        return Combination(bind(_weighted_models, weights=deltas.weights))
    if abs(total) < 1e-8:
        raise UsageError(
            f"the weights of tensor '{deltas.name}' sum to {total:g}, expected another sum; linear with "
            "normalize=false does not divide by it"
        )
    return Combination(lambda block: weighted_sum(block.deltas, deltas.weights) / total)


def _weighted_models(block: Block, weights: tuple[float, ...]) -> Tensor:
    """Returns Σ_k w_k θ_k − θ."""
    return weighted_sum(block.deltas, weights) + (sum(weights) - 1) * block.base
