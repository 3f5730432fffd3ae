"""Inner products of a tensor's base and deltas, and merges that are linear combinations found from them.

Angles, norms and means on a sphere depend on inner products alone: one reading of the tensor gives the
coefficients, and a second one the merged delta.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

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
    return _products(deltas, lambda block: block.deltas)


def model_products(deltas: TensorDeltas) -> Matrix:
    """Returns the inner products of the fine-tuned tensors θ + τ_k, float64 (task, task)."""
    products = _products(deltas, lambda block: torch.cat([block.base[None], block.deltas]))
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


@dataclass(frozen=True)
class Rows:
    """The vectors along one dimension of a tensor, each of which is merged by itself.

    count: of the vectors. width: entries of the last dimension, or for vectors along the first one of all
    others. A tensor of one dimension is one vector.
    """

    count: int
    width: int
    is_first: bool

    @classmethod
    def of(cls, shape: tuple[int, ...], is_first: bool) -> "Rows":
        """Returns the vectors of a shape along its last dimension, or its first."""
        entries = math.prod(shape)
        width = entries // max(1, shape[0]) if is_first else shape[-1]
        return cls(width, width, True) if is_first else cls(entries // max(1, width), width, False)

    def numbers(self, start: int, count: int) -> NDArray[np.int64]:
        """Returns the numbers of the vectors that a run of entries belongs to, (entry,)."""
        places = np.arange(start, start + count)
        return places % self.width if self.is_first else places // self.width


def row_products(deltas: TensorDeltas, rows: Rows, of: str = "deltas") -> Matrix:
    """Returns the inner products of the deltas, or models, of each vector, float64 (vector, task, task)."""
    count = len(deltas.weights) + 1
    sums = np.zeros((rows.count, count, count))
    for block in deltas.blocks():
        values = torch.cat([block.base[None], block.deltas]).numpy()  # (base and task, entry)
        _add_row_products(values, rows.numbers(block.start, values.shape[1]), sums)
    products = np.triu(sums) + np.triu(sums, 1).swapaxes(1, 2)
    if of == "deltas":
        return products[:, 1:, 1:]
    mixed = products[:, 0, 1:]
    return products[:, :1, :1] + mixed[:, :, None] + mixed[:, None, :] + products[:, 1:, 1:]


def combined_rows(coefficients: Matrix, rows: Rows, of: str = "deltas") -> Combination:
    """Returns the merge Σ_k c_k τ_k of each vector, or of weights Σ_k c_k (θ + τ_k).

    coefficients: (vector, task).
    """

    def combine(block: Block) -> Tensor:
        numbers = rows.numbers(block.start, len(block.base))
        factors = torch.from_numpy(coefficients[numbers].T.astype(np.float32))  # (task, entry)
        merged = torch.zeros(len(block.base))
        for delta, factor in zip(block.deltas, factors, strict=True):
            merged += factor * delta
        if of == "deltas":
            return merged
        totals = torch.from_numpy((coefficients.sum(axis=1)[numbers] - 1).astype(np.float32))
        return merged + totals * block.base

    return Combination(combine)


def _products(deltas: TensorDeltas, rows_of: Callable[[Block], Tensor]) -> Matrix:
    """Returns the inner products of the rows of each block, float64, summed in an order of their own."""
    summing: Future[None] | None = None
    sums = np.zeros((0, 0, _LANES))
    for block in deltas.blocks():
        rows = rows_of(block).numpy()  # (row, entry)
        if summing is None:
            sums = np.zeros((len(rows), len(rows), _LANES))
        else:
            summing.result()
        summing = deltas.model.pool.submit(_add_products, rows, sums)
    if summing is not None:
        summing.result()
    upper: Matrix = np.zeros(sums.shape[:2])
    for lane in range(_LANES):
        upper += sums[:, :, lane]
    return np.triu(upper) + np.triu(upper, 1).T


@compiled
def _add_row_products(
    values: NDArray[np.float32], numbers: NDArray[np.int64], sums: NDArray[np.float64]
) -> None:
    count, entries = values.shape
    for index in range(entries):
        for one in range(count):
            for other in range(one, count):
                sums[numbers[index], one, other] += np.float64(values[one, index]) * np.float64(
                    values[other, index]
                )


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
