"""A delta matrix of one signed byte an entry times a scale: for high densities.

Inputs are split into two or three bytes (activations.py), and the products of bytes are summed exactly in 32
bits. So the error is that of rounding an input to 16 or 24 bits, and a token's result depends on nothing else
in the batch. A product costs rows times columns times tokens, each about a quarter of a float32
multiplication where the processor has int8 instructions.
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
from flexswitch.merging.switching.activations import Activations, Digits, Ids

Codes = NDArray[np.int8]

LARGEST_CODE = 127
MAX_SUMS = 1 << 24  # integers held at once for several tasks
# A delta this much smaller than the base's weights needs one byte less for a sum of float32's precision.
_SMALL = 1 / 16


def digits_for(delta_size: float, base_size: float) -> int:
    """Returns how many bytes an input needs, given the root mean squares of delta and base."""
    return 2 if delta_size <= _SMALL * base_size else 3


@dataclass(frozen=True, eq=False)
class Int8Matrix:
    """A quantised matrix.

    codes: (row, column) int8; table: (256,), the float32 value of code c at c + 128; scale: the value of code
    1; digits: the bytes that an input is split into.
    """

    codes: Codes
    table: FloatArray
    scale: float
    digits: int = 3

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.codes.shape
        return rows, columns

    @property
    def nbytes(self) -> int:
        """The size in memory."""
        return self.codes.nbytes + self.table.nbytes

    def dense(self) -> Tensor:
        """Returns the delta, (row, column) float32."""
        return torch.from_numpy(self.table[self.codes.astype(np.int16) + 128])

    def add_to(self, weights: FloatArray, factor: float) -> None:
        """Adds factor · τ to (row, column) weights in place."""
        step = np.float32(factor * self.scale)
        run_in_parts(
            lambda start, stop: _add(weights[start:stop], self.codes[start:stop], step),
            self.shape[0],
            self.codes.size,
        )

    def add_rows(self, ids: Ids, positions: Ids, factors: FloatArray, out: FloatArray) -> None:
        """Adds factors[i] · τ[ids[positions[i]]] to out[positions[i]].

        ids: (token,), out: (token, column).
        """
        arrays = (self.codes, self.table, ids, positions, factors, out)
        run_in_parts(lambda start, stop: _add_rows(*arrays, start, stop), len(positions), out.size)

    def add_product(
        self, inputs: Activations, positions: Ids, factors: FloatArray, bias: FloatArray, out: FloatArray
    ) -> None:
        """Adds factors[i] · (τ·x + bias) to out[positions[i]] for x = inputs[positions[i]].

        inputs: (token, column), bias: (row,), out: (token, row).
        """
        add_products([Int8Term(self, positions, factors, bias)], inputs, out)


class Int8Term(NamedTuple):
    """One task's term in a layer's output: the arguments of `Int8Matrix.add_product`."""

    matrix: Int8Matrix
    positions: Ids
    factors: FloatArray
    bias: FloatArray


def add_products(
    terms: Sequence[Int8Term], inputs: Activations, out: FloatArray, max_sums: int = MAX_SUMS
) -> None:
    """Adds several tasks' terms to a layer's output in their order; out: (token, row).

    max_sums: the integers held at once, which bounds the memory and changes no result.
    """
    for digits in sorted({term.matrix.digits for term in terms}):
        own = [term for term in terms if term.matrix.digits == digits and len(term.positions)]
        for chunk in _chunks(own, max_sums // (digits * max(1, out.shape[1]))):
            _add_chunk(chunk, inputs, digits, out)


def _chunks(terms: Sequence[Int8Term], max_tokens: int) -> list[list[Int8Term]]:
    """Returns the terms in runs of at most `max_tokens` tokens, at least one term each."""
    chunks: list[list[Int8Term]] = []
    tokens = 0
    for term in terms:
        tokens += len(term.positions)
        if not chunks or tokens > max_tokens:
            chunks.append([])
            tokens = len(term.positions)
        chunks[-1].append(term)
    return chunks


def _add_chunk(terms: Sequence[Int8Term], inputs: Activations, digits: int, out: FloatArray) -> None:
    """Adds some terms; all but the products is done for all of them at once."""
    whole, input_scales = inputs.digits(digits)
    starts = np.cumsum([0, *(len(term.positions) for term in terms)])
    positions, factors = (np.concatenate([term[field] for term in terms]) for field in (1, 2))
    taken = np.empty((digits * len(positions), whole.shape[2]), np.int8)
    run_in_parts(
        lambda first, last: _gather(whole, positions, starts, taken, first, last), len(terms), taken.size
    )
    numbers, sums = torch.from_numpy(taken), torch.empty(len(taken), out.shape[1], dtype=torch.int32)
    ends = (digits * starts).tolist()
    for term, start, stop in zip(terms, ends[:-1], ends[1:], strict=True):
        torch._int_mm(numbers[start:stop], torch.from_numpy(term.matrix.codes).t(), out=sums[start:stop])
    scales = np.array([term.matrix.scale for term in terms], np.float32)
    biases = np.stack([term.bias for term in terms])
    arrays = (sums.numpy(), digits, positions, factors, input_scales, scales, biases, starts, out)
    run_in_parts(lambda first, last: _join(*arrays, first, last), out.shape[1], sums.numel())


@compiled
def _gather(whole: Digits, positions: Ids, starts: Ids, taken: Codes, first: int, last: int) -> None:
    """Copies the digits of each term's tokens, all tokens of one digit together."""
    for part in range(first, last):
        count = starts[part + 1] - starts[part]
        for digit in range(whole.shape[0]):
            begin = whole.shape[0] * starts[part] + digit * count
            for index in range(count):
                line, source = taken[begin + index], whole[digit, positions[starts[part] + index]]
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
    positions: Ids,
    factors: FloatArray,
    out: FloatArray,
    first: int,
    last: int,
) -> None:
    for token in range(first, last):
        row, target = codes[ids[positions[token]]], out[positions[token]]
        for column in range(row.size):
            target[column] += factors[token] * table[np.int64(row[column]) + 128]


@compiled
def _join(
    sums: NDArray[np.int32],
    digits: int,
    positions: Ids,
    factors: FloatArray,
    input_scales: FloatArray,
    scales: FloatArray,
    biases: FloatArray,
    starts: Ids,
    out: FloatArray,
    first: int,
    last: int,
) -> None:
    """Adds the terms to some columns of the output, in the order of the terms."""
    for part in range(scales.size):
        count, bias = starts[part + 1] - starts[part], biases[part, first:last]
        for index in range(count):
            token, begin = starts[part] + index, digits * starts[part] + index
            factor, step = factors[token], input_scales[positions[token]] * scales[part]
            line = out[positions[token], first:last]
            if digits == 2:
                high, low = sums[begin, first:last], sums[begin + count, first:last]
                for row in range(line.size):
                    total = np.float32(256) * np.float32(high[row]) + np.float32(low[row])
                    line[row] += factor * (step * total + bias[row])
            else:
                high, middle = sums[begin, first:last], sums[begin + count, first:last]
                low = sums[begin + 2 * count, first:last]
                for row in range(line.size):
                    upper = np.float32(256) * np.float32(high[row]) + np.float32(middle[row])
                    total = np.float32(256) * upper + np.float32(low[row])
                    line[row] += factor * (step * total + bias[row])
