"""A unit's delta as the kept entries of each row: for low densities and for tables of embeddings."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.compiled import compiled
from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.threads import run_in_parts
from flexswitch.merging.switching.activations import Activations

Ids = NDArray[np.int64]
Columns = NDArray[np.unsignedinteger[Any]]

_LANES = 64  # tokens that are worked on together
_TILE = 16  # columns that are turned together: more would drive each other out of the nearest cache
_SUMS = 64  # rows whose sums are turned back together


@dataclass(frozen=True, eq=False)
class CsrMatrix:
    """starts: (row + 1,) int64, where each row begins; columns, values: (kept,), row by row, float32."""

    shape: tuple[int, int]
    starts: Ids
    columns: Columns
    values: FloatArray

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return self.starts.nbytes + self.columns.nbytes + self.values.nbytes

    def dense(self) -> Tensor:
        """Returns the delta, (row, column) float32."""
        whole = np.zeros(self.shape, np.float32)
        self.add_to(whole, 1.0)
        return torch.from_numpy(whole)

    def add_to(self, weights: FloatArray, factor: float) -> None:
        """Adds factor · τ to (row, column) weights in place."""
        run_in_parts(
            lambda start, stop: _add(
                weights, self.starts, self.columns, self.values, np.float32(factor), start, stop
            ),
            self.shape[0],
            len(self.values),
        )

    def take_back(self, weights: FloatArray, base: FloatArray) -> None:
        """Puts the base's values where entries are kept."""
        run_in_parts(
            lambda start, stop: _copy(weights, base, self.starts, self.columns, start, stop),
            self.shape[0],
            len(self.values),
        )

    def add_rows(self, ids: Ids, places: Ids, factors: FloatArray, out: FloatArray) -> None:
        """Adds factors[i] · τ[ids[places[i]]] to out[places[i]]; ids: (token,), out: (token, column)."""
        arrays = (self.starts, self.columns, self.values, ids, places, factors, out)
        run_in_parts(lambda start, stop: _add_rows(*arrays, start, stop), len(places), out.size)

    def add_product(
        self, inputs: Activations, places: Ids, factors: FloatArray, shift: FloatArray, out: FloatArray
    ) -> None:
        """Adds factors[i] · (τ·x + shift) to out[places[i]] for x = inputs[places[i]].

        inputs: (token, column), shift: (row,), out: (token, row). On one thread: tokens are dealt out to
        several by the caller. Each token's sums run in the order of the columns.
        """
        _add_product(self.starts, self.columns, self.values, inputs.values, places, factors, shift, out)


@compiled
def _add(
    weights: FloatArray,
    starts: Ids,
    columns: Columns,
    values: FloatArray,
    factor: np.float32,
    first: int,
    last: int,
) -> None:
    for row in range(first, last):
        for index in range(starts[row], starts[row + 1]):
            weights[row, columns[index]] += factor * values[index]


@compiled
def _copy(
    weights: FloatArray, base: FloatArray, starts: Ids, columns: Columns, first: int, last: int
) -> None:
    for row in range(first, last):
        for index in range(starts[row], starts[row + 1]):
            weights[row, columns[index]] = base[row, columns[index]]


@compiled
def _add_rows(
    starts: Ids,
    columns: Columns,
    values: FloatArray,
    ids: Ids,
    places: Ids,
    factors: FloatArray,
    out: FloatArray,
    first: int,
    last: int,
) -> None:
    for token in range(first, last):
        row, target = ids[places[token]], out[places[token]]
        for index in range(starts[row], starts[row + 1]):
            target[columns[index]] += factors[token] * values[index]


@compiled
def _add_product(
    starts: Ids,
    columns: Columns,
    values: FloatArray,
    inputs: FloatArray,
    places: Ids,
    factors: FloatArray,
    shift: FloatArray,
    out: FloatArray,
) -> None:
    """Adds all rows for one block of tokens after the other, a token in each of the processor's lanes."""
    block = np.zeros((inputs.shape[1], _LANES), np.float32)
    sums = np.empty((_SUMS, _LANES), np.float32)
    for number in range((places.size + _LANES - 1) // _LANES):
        begin = number * _LANES
        size = min(_LANES, places.size - begin)
        for tile in range(0, inputs.shape[1], _TILE):
            for token in range(size):
                line = inputs[places[begin + token]]
                for column in range(tile, min(tile + _TILE, line.size)):
                    block[column, token] = line[column]
        for first in range(0, shift.size, _SUMS):
            last = min(first + _SUMS, shift.size)
            for row in range(first, last):
                total = sums[row - first]
                for token in range(_LANES):
                    total[token] = np.float32(0)
                index, end = starts[row], starts[row + 1]
                while index + 4 <= end:
                    value_0, value_1 = values[index], values[index + 1]
                    value_2, value_3 = values[index + 2], values[index + 3]
                    line_0, line_1 = block[columns[index]], block[columns[index + 1]]
                    line_2, line_3 = block[columns[index + 2]], block[columns[index + 3]]
                    for token in range(_LANES):
                        total[token] += (
                            value_0 * line_0[token]
                            + value_1 * line_1[token]
                            + value_2 * line_2[token]
                            + value_3 * line_3[token]
                        )
                    index += 4
                while index < end:
                    value, line = values[index], block[columns[index]]
                    for token in range(_LANES):
                        total[token] += value * line[token]
                    index += 1
            for token in range(size):
                target, factor = out[places[begin + token]], factors[begin + token]
                for row in range(first, last):
                    target[row] += factor * (sums[row - first, token] + shift[row])
