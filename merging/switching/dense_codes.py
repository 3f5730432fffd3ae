"""A unit's delta as one signed byte an entry times a step: for high densities.

Products run in whole numbers: inputs are split into two or three bytes (inputs.py), and the products of bytes
are summed exactly in 32 bits. So the error is that of rounding an input to 16 or 24 bits, and a token's
result depends on nothing else in the batch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.compiled import compiled
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.switching.inputs import Inputs
from flexswitch.merging.switching.threads import in_parts

Ids = NDArray[np.int64]
Codes = NDArray[np.int8]

LARGEST_CODE = 127
# A delta this much smaller than the base's weights needs a byte less for the sum to have float32's precision.
_SMALL = 1 / 16


def digits_for(delta_size: float, base_size: float) -> int:
    """Returns how many bytes inputs need, by the root mean squares of a delta and of the base's weights."""
    return 2 if delta_size <= _SMALL * base_size else 3


@dataclass(frozen=True, eq=False)
class DenseCodes:
    """codes: (row, column) int8; table: (256,), the float32 nearest to code c times step, at c + 128.

    digits: bytes that an input is split into.
    """

    codes: Codes
    table: FloatArray
    step: float
    digits: int = 3

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.codes.shape
        return rows, columns

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return self.codes.nbytes + self.table.nbytes

    def dense(self) -> Tensor:
        """Returns the delta, (row, column) float32."""
        return torch.from_numpy(self.table[self.codes.astype(np.int16) + 128])

    def add_to(self, weights: FloatArray, factor: float) -> None:
        """Adds factor · τ to (row, column) weights in place."""
        step = np.float32(factor * self.step)
        in_parts(
            lambda start, stop: _add(weights[start:stop], self.codes[start:stop], step),
            self.shape[0],
            self.codes.size,
        )

    def add_rows(self, ids: Ids, places: Ids, factors: FloatArray, out: FloatArray) -> None:
        """Adds factors[i] · τ[ids[places[i]]] to out[places[i]]; ids: (token,), out: (token, column)."""
        arrays = (self.codes, self.table, ids, places, factors, out)
        in_parts(lambda start, stop: _add_rows(*arrays, start, stop), len(places), out.size)

    def add_product(
        self, inputs: Inputs, places: Ids, factors: FloatArray, shift: FloatArray, out: FloatArray
    ) -> None:
        """Adds factors[i] · (τ·x + shift) to out[places[i]] for x = inputs[places[i]].

        inputs: (token, column), shift: (row,), out: (token, row).
        """
        digits, units = inputs.digits(self.digits)
        count = len(places)
        taken = np.empty((self.digits, count, self.shape[1]), np.int8)
        for digit in range(self.digits):
            np.take(digits[digit], places, axis=0, out=taken[digit], mode="clip")
        flat = torch.from_numpy(taken).view(-1, self.shape[1])
        sums = torch._int_mm(flat, torch.from_numpy(self.codes).t()).view(self.digits, count, -1).numpy()
        steps = units[places] * np.float32(self.step)
        in_parts(
            lambda start, stop: _join(sums, places, factors, steps, shift, out, start, stop), count, sums.size
        )


@compiled
def _add(weights: FloatArray, codes: Codes, step: np.float32) -> None:
    for row in range(codes.shape[0]):
        for column in range(codes.shape[1]):
            weights[row, column] += step * np.float32(codes[row, column])


@compiled
def _add_rows(
    codes: Codes,
    table: FloatArray,
    ids: Ids,
    places: Ids,
    factors: FloatArray,
    out: FloatArray,
    first: int,
    last: int,
) -> None:
    for token in range(first, last):
        row, target = codes[ids[places[token]]], out[places[token]]
        for column in range(row.size):
            target[column] += factors[token] * table[np.int64(row[column]) + 128]


@compiled
def _join(
    sums: NDArray[np.int32],
    places: Ids,
    factors: FloatArray,
    steps: FloatArray,
    shift: FloatArray,
    out: FloatArray,
    first: int,
    last: int,
) -> None:
    for token in range(first, last):
        line, factor, step = out[places[token]], factors[token], steps[token]
        if sums.shape[0] == 2:
            high, low = sums[0, token], sums[1, token]
            for row in range(line.size):
                total = np.float32(256) * np.float32(high[row]) + np.float32(low[row])
                line[row] += factor * (step * total + shift[row])
        else:
            high, middle, low = sums[0, token], sums[1, token], sums[2, token]
            for row in range(line.size):
                upper = np.float32(256) * np.float32(high[row]) + np.float32(middle[row])
                total = np.float32(256) * upper + np.float32(low[row])
                line[row] += factor * (step * total + shift[row])
