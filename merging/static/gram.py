"""Inner products of a tensor's base and deltas, and merges that are linear combinations found from them.

Angles, norms and means on a sphere depend on inner products alone: one reading of the tensor gives the
coefficients, and a second one the merged delta.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.compiled import compiled
from flexswitch.merging.static.task_deltas import Block, Combination, TensorDeltas, weighted_sum

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

_LANES = 8  # sums that run side by side; a block's start is a multiple of it


def delta_products(deltas: TensorDeltas) -> Matrix:
    """Returns the inner products of the deltas, float64 (task, task)."""
    return _products(deltas)[1:, 1:]


def model_products(deltas: TensorDeltas) -> Matrix:
    """Returns the inner products of the fine-tuned tensors θ + τ_k, float64 (task, task)."""
    products = _products(deltas)
    mixed = products[0, 1:]
    found: Matrix = products[0, 0] + mixed[:, None] + mixed[None, :] + products[1:, 1:]
    return found


def combined_deltas(coefficients: Sequence[float] | Vector) -> Combination:
    """Returns the merge Σ_k c_k τ_k."""
    factors = [float(each) for each in coefficients]
    return Combination(lambda block: weighted_sum(block.deltas, factors))


def combined_models(coefficients: Sequence[float] | Vector) -> Combination:
    """Returns the merge whose weights are Σ_k c_k (θ + τ_k)."""
    factors = [float(each) for each in coefficients]
    total = 0.0
    for factor in factors:
        total += factor

    def combine(block: Block) -> Tensor:
        return weighted_sum(block.deltas, factors) + (total - 1) * block.base

    return Combination(combine)


def _products(deltas: TensorDeltas) -> Matrix:
    """Returns the inner products of (base, deltas …), float64, summed in an order of their own."""
    count = len(deltas.weights) + 1
    sums = np.zeros((count, count, _LANES))
    for block in deltas.blocks():
        rows = torch.cat([block.base[None], block.deltas]).numpy()  # (base and task, entry)
        _add_products(rows, sums)
    upper: Matrix = np.zeros((count, count))
    for lane in range(_LANES):
        upper += sums[:, :, lane]
    return np.triu(upper) + np.triu(upper, 1).T


@compiled
def _add_products(rows: NDArray[np.float32], sums: NDArray[np.float64]) -> None:
    count, entries = rows.shape
    whole = entries // _LANES * _LANES
    for one in range(count):
        for other in range(one, count):
            lanes = sums[one, other]
            for start in range(0, whole, _LANES):
                for lane in range(_LANES):
                    index = start + lane
                    lanes[lane] += np.float64(rows[one, index]) * np.float64(rows[other, index])
            for index in range(whole, entries):
                lanes[index - whole] += np.float64(rows[one, index]) * np.float64(rows[other, index])
