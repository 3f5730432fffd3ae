"""A unit's delta as one signed byte an entry times a step: for high densities.

Products run in integers: inputs are split into two or three bytes (activations.py); the products of bytes
are summed exactly in 32 bits. So the error is that of rounding an input to 16 or 24 bits, and a token's
result depends on nothing else in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.compiled import compiled
from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.threads import run_in_parts
from flexswitch.merging.switching.activations import Activations, Digits

Ids = NDArray[np.int64]
Codes = NDArray[np.int8]

LARGEST_CODE = 127
_MOST_SUMS = 1 << 24  # whole numbers that are held at once for several tasks
# A delta this much smaller than the base's weights needs a byte less for the sum to have float32's precision.
_SMALL = 1 / 16


def digits_for(delta_size: float, base_size: float) -> int:
    """Returns how many bytes inputs need, by the root mean squares of a delta and of the base's weights."""
    return 2 if delta_size <= _SMALL * base_size else 3


@dataclass(frozen=True, eq=False)
class Int8Matrix:
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
        run_in_parts(
            lambda start, stop: _add(weights[start:stop], self.codes[start:stop], step),
            self.shape[0],
            self.codes.size,
        )

    def add_rows(self, ids: Ids, places: Ids, factors: FloatArray, out: FloatArray) -> None:
        """Adds factors[i] · τ[ids[places[i]]] to out[places[i]]; ids: (token,), out: (token, column)."""
        arrays = (self.codes, self.table, ids, places, factors, out)
        run_in_parts(lambda start, stop: _add_rows(*arrays, start, stop), len(places), out.size)

    def add_product(
        self, inputs: Activations, places: Ids, factors: FloatArray, shift: FloatArray, out: FloatArray
    ) -> None:
        """Adds factors[i] · (τ·x + shift) to out[places[i]] for x = inputs[places[i]].

        inputs: (token, column), shift: (row,), out: (token, row).
        """
        add_products([Int8Term(self, places, factors, shift)], inputs, out)


class Int8Term(NamedTuple):
    """One task's part in a layer: see `Int8Matrix.add_product`."""

    unit: Int8Matrix
    places: Ids
    factors: FloatArray
    shift: FloatArray


def add_products(parts: Sequence[Int8Term], inputs: Activations, out: FloatArray) -> None:
    """Adds several tasks' parts to a layer's output, one after the other; out: (token, row)."""
    for digits in sorted({part.unit.digits for part in parts}):
        own = [part for part in parts if part.unit.digits == digits and len(part.places)]
        for together in _in_runs(own, _MOST_SUMS // (digits * max(1, out.shape[1]))):
            _add_of_digits(together, inputs, digits, out)


def _in_runs(parts: Sequence[Int8Term], most: int) -> list[list[Int8Term]]:
    """Returns the parts in runs of at most so many tokens; one part is a run whatever it has."""
    runs: list[list[Int8Term]] = []
    tokens = 0
    for part in parts:
        tokens += len(part.places)
        if not runs or tokens > most:
            runs.append([])
            tokens = len(part.places)
        runs[-1].append(part)
    return runs


def _add_of_digits(parts: Sequence[Int8Term], inputs: Activations, digits: int, out: FloatArray) -> None:
    """Gathers and joins all parts at once; the products alone are each task's own."""
    whole, units = inputs.digits(digits)
    starts = np.cumsum([0, *(len(part.places) for part in parts)])
    places, factors = (np.concatenate([part[field] for part in parts]) for field in (1, 2))
    taken = np.empty((digits * len(places), whole.shape[2]), np.int8)
    run_in_parts(
        lambda first, last: _gather(whole, places, starts, taken, first, last), len(parts), taken.size
    )
    numbers, sums = torch.from_numpy(taken), torch.empty(len(taken), out.shape[1], dtype=torch.int32)
    ends = (digits * starts).tolist()
    for part, start, stop in zip(parts, ends[:-1], ends[1:], strict=True):
        torch._int_mm(numbers[start:stop], torch.from_numpy(part.unit.codes).t(), out=sums[start:stop])
    steps = np.array([part.unit.step for part in parts], np.float32)
    shifts = np.stack([part.shift for part in parts])
    arrays = (sums.numpy(), digits, places, factors, units, steps, shifts, starts, out)
    run_in_parts(lambda first, last: _join(*arrays, first, last), out.shape[1], sums.numel())


@compiled
def _gather(whole: Digits, places: Ids, starts: Ids, taken: Codes, first: int, last: int) -> None:
    """Copies the digits of each part's tokens, all of one digit together."""
    for part in range(first, last):
        count = starts[part + 1] - starts[part]
        for digit in range(whole.shape[0]):
            begin = whole.shape[0] * starts[part] + digit * count
            for index in range(count):
                line, source = taken[begin + index], whole[digit, places[starts[part] + index]]
                for column in range(line.size):
                    line[column] = source[column]


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
    digits: int,
    places: Ids,
    factors: FloatArray,
    units: FloatArray,
    steps: FloatArray,
    shifts: FloatArray,
    starts: Ids,
    out: FloatArray,
    first: int,
    last: int,
) -> None:
    """Adds the parts to some columns of the output, in the order of the parts."""
    for part in range(steps.size):
        count, shift = starts[part + 1] - starts[part], shifts[part, first:last]
        for index in range(count):
            token, begin = starts[part] + index, digits * starts[part] + index
            factor, step = factors[token], units[places[token]] * steps[part]
            line = out[places[token], first:last]
            if digits == 2:
                high, low = sums[begin, first:last], sums[begin + count, first:last]
                for row in range(line.size):
                    total = np.float32(256) * np.float32(high[row]) + np.float32(low[row])
                    line[row] += factor * (step * total + shift[row])
            else:
                high, middle = sums[begin, first:last], sums[begin + count, first:last]
                low = sums[begin + 2 * count, first:last]
                for row in range(line.size):
                    upper = np.float32(256) * np.float32(high[row]) + np.float32(middle[row])
                    total = np.float32(256) * upper + np.float32(low[row])
                    line[row] += factor * (step * total + shift[row])
