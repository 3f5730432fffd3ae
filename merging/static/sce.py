"""SCE: select the entries that vary most between tasks, weigh the tasks by their squares, erase minorities.

Source: Wan et al. 2024, "FuseChat" (arXiv 2408.07990), section 3.3; docs/methods.md §6.20.
"""

from collections.abc import Iterator
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.sums import square_sum
from flexswitch.merging.static.election import elected_signs
from flexswitch.merging.static.order_statistic import largest_reach
from flexswitch.merging.static.task_deltas import Block, Combination, TensorDeltas
from flexswitch.merging.static.trimming import share


def sce(
    deltas: TensorDeltas,
    *,
    density: Annotated[
        float, Field(ge=0, le=1, description="Share of the entries with a variance above 0 that is selected.")
    ] = 1.0,
) -> Combination:
    """Returns the mean of the deltas that have the elected sign, weighted by the tasks' mean squares.

    The entries selected are those of largest variance between the tasks, and all that equal the last.
    """

    def variances() -> Iterator[FloatArray]:
        return (_variance(block.deltas).numpy() for block in deltas.blocks())

    least = 0.0
    if density < 1:
        varying = sum(int(np.count_nonzero(block)) for block in variances())
        least = largest_reach(variances, share(density, varying))
    squares = np.zeros(len(deltas.weights))
    for block in deltas.blocks():
        squares += [square_sum(each.numpy()) for each in _selected(block, least)]
    weights = squares / squares.sum() if squares.sum() > 0 else np.full(len(squares), 1 / len(squares))
    return Combination(lambda block: _weighted_mean(_selected(block, least), weights.tolist()))


def _weighted_mean(deltas: Tensor, weights: list[float]) -> Tensor:
    signs = elected_signs(deltas, [1.0] * len(weights), "mass")
    signs = torch.where(signs == 0, 1.0, signs)
    merged, shares = torch.zeros_like(signs), torch.zeros_like(signs)
    for delta, weight in zip(deltas, weights, strict=True):
        agrees = delta * signs > 0
        merged += torch.where(agrees, weight * delta, 0.0)
        shares += weight * agrees
    return merged / torch.where(shares == 0, 1.0, shares)


def _selected(block: Block, least: float) -> Tensor:
    """Returns the deltas, 0 where their variance is below a threshold, (task, entry)."""
    return block.deltas if least == 0 else torch.where(_variance(block.deltas) >= least, block.deltas, 0.0)


def _variance(deltas: Tensor) -> Tensor:
    """Returns the variance of each entry between the tasks, float32 (entry,).

    It is computed in float64, so that equal variances stay equal.
    """
    mean = torch.zeros(deltas.shape[1], dtype=torch.float64)
    for delta in deltas:
        mean += delta
    mean /= len(deltas)
    total = torch.zeros_like(mean)
    for delta in deltas:
        total += (delta - mean) ** 2
    return (total / len(deltas)).to(torch.float32)
