"""A delta matrix in compressed sparse rows (CSR): for low densities and for embedding tables.

A product multiplies 64 tokens at a time, one in each lane of the processor, by every kept entry. So it costs
the kept entries times the tokens, plus a small constant for each row and each column. A token's sum has
the same order whatever the others.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.compiled import compiled
from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.threads import run_in_parts
from flexswitch.merging.switching.activations import Activations, Ids

Columns = NDArray[np.unsignedinteger[Any]]

_FEW = 4  # tokens, up to which most lanes would be idle: they are multiplied one after the other
_LANES = 64  # tokens in a block
_TILE = 16  # indices transposed together; more would evict each other from the first-level cache
_SUMS = 64  # rows whose sums are transposed back together


@dataclass(frozen=True, eq=False)
class CsrMatrix:
    """A matrix in CSR form.

    indptr: (row + 1,) int64, where each row begins; indices: (kept,), the columns row by row; values: (kept,)
    float32.
    """

    shape: tuple[int, int]
    indptr: Ids
    indices: Columns
    values: FloatArray

    @property
    def nbytes(self) -> int:
        """The size in memory."""
        return self.indptr.nbytes + self.indices.nbytes + self.values.nbytes

    def dense(self) -> Tensor:
        """Returns the delta, (row, column) float32."""
        whole = np.zeros(self.shape, np.float32)
        self.add_to(whole, 1.0)
        return torch.from_numpy(whole)

    def add_to(self, weights: FloatArray, factor: float) -> None:
        """Adds factor · τ to (row, column) weights in place."""
        run_in_parts(
            lambda start, stop: _add(
                weights, self.indptr, self.indices, self.values, np.float32(factor), start, stop
            ),
            self.shape[0],
            len(self.values),
        )

    def add_rows(self, ids: Ids, positions: Ids, factors: FloatArray, out: FloatArray) -> None:
        """Adds factors[i] · τ[ids[positions[i]]] to out[positions[i]].

        ids: (token,), out: (token, column).
        """
        arrays = (self.indptr, self.indices, self.values, ids, positions, factors, out)
        run_in_parts(lambda start, stop: _add_rows(*arrays, start, stop), len(positions), out.size)

    def add_product(
        self, inputs: Activations, positions: Ids, factors: FloatArray, bias: FloatArray, out: FloatArray
    ) -> None:
        """Adds factors[i] · (τ·x + bias) to out[positions[i]] for x = inputs[positions[i]].

        inputs: (token, column), bias: (row,), out: (token, row). Runs on one thread: the caller divides the
        tokens among several.
        """
        product = _add_product_of_few if len(positions) <= _FEW else _add_product
        product(self.indptr, self.indices, self.values, inputs.values, positions, factors, bias, out)


@compiled
def _add(
    weights: FloatArray,
    indptr: Ids,
    indices: Columns,
    values: FloatArray,
    factor: np.float32,
    first: int,
    last: int,
) -> None:
    for row in range(first, last):
        for index in range(indptr[row], indptr[row + 1]):
            weights[row, indices[index]] += factor * values[index]


@compiled
def _add_rows(
    indptr: Ids,
    indices: Columns,
    values: FloatArray,
    ids: Ids,
    positions: Ids,
    factors: FloatArray,
    out: FloatArray,
    first: int,
    last: int,
) -> None:
    for token in range(first, last):
        row, target = ids[positions[token]], out[positions[token]]
        for index in range(indptr[row], indptr[row + 1]):
            target[indices[index]] += factors[token] * values[index]


@compiled
def _add_product_of_few(
    indptr: Ids,
    indices: Columns,
    values: FloatArray,
    inputs: FloatArray,
    positions: Ids,
    factors: FloatArray,
    bias: FloatArray,
    out: FloatArray,
) -> None:
    """Multiplies one token after the other by all rows, in the order of `_add_product`."""
    for token in range(positions.size):
        line, target, factor = inputs[positions[token]], out[positions[token]], factors[token]
        for row in range(bias.size):
            total = np.float32(0)
            index, end = indptr[row], indptr[row + 1]
            while index + 4 <= end:
                total += (
                    values[index] * line[indices[index]]
                    + values[index + 1] * line[indices[index + 1]]
                    + values[index + 2] * line[indices[index + 2]]
                    + values[index + 3] * line[indices[index + 3]]
                )
                index += 4
            while index < end:
                total += values[index] * line[indices[index]]
                index += 1
            target[row] += factor * (total + bias[row])


@compiled
def _add_product(
    indptr: Ids,
    indices: Columns,
    values: FloatArray,
    inputs: FloatArray,
    positions: Ids,
    factors: FloatArray,
    bias: FloatArray,
    out: FloatArray,
) -> None:
    """Multiplies one block of tokens after the other by all rows."""
    block = np.zeros((inputs.shape[1], _LANES), np.float32)
    sums = np.empty((_SUMS, _LANES), np.float32)
    # One function: split in three it takes 7 % longer, as arrays that are passed on may overlap.
    for number in range((positions.size + _LANES - 1) // _LANES):
        begin = number * _LANES
        size = min(_LANES, positions.size - begin)
        for tile in range(0, inputs.shape[1], _TILE):
            for token in range(size):
                line = inputs[positions[begin + token]]
                for column in range(tile, min(tile + _TILE, line.size)):
                    block[column, token] = line[column]
        for first in range(0, bias.size, _SUMS):
            last = min(first + _SUMS, bias.size)
            for row in range(first, last):
                total = sums[row - first]
                for token in range(_LANES):
                    total[token] = np.float32(0)
                index, end = indptr[row], indptr[row + 1]
                while index + 4 <= end:
                    value_0, value_1 = values[index], values[index + 1]
                    value_2, value_3 = values[index + 2], values[index + 3]
                    line_0, line_1 = block[indices[index]], block[indices[index + 1]]
                    line_2, line_3 = block[indices[index + 2]], block[indices[index + 3]]
                    for token in range(_LANES):
                        total[token] += (
                            value_0 * line_0[token]
                            + value_1 * line_1[token]
                            + value_2 * line_2[token]
                            + value_3 * line_3[token]
                        )
                    index += 4
                while index < end:
                    value, line = values[index], block[indices[index]]
                    for token in range(_LANES):
                        total[token] += value * line[token]
                    index += 1
            for token in range(size):
                target, factor = out[positions[begin + token]], factors[begin + token]
                for row in range(first, last):
                    target[row] += factor * (sums[row - first, token] + bias[row])
