"""A layer's inputs in the forms that delta products use, each made once for all tasks."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.compiled import compiled
from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.threads import run_in_parts

Ids = NDArray[np.int64]
Digits = NDArray[np.int8]


class Activations:
    """The inputs of one layer. values: (token, column) float32, contiguous."""

    def __init__(self, values: FloatArray) -> None:
        self.values = values
        self._digits: dict[int, tuple[Digits, FloatArray]] = {}

    def digits(self, count: int) -> tuple[Digits, FloatArray]:
        """Returns the values as integers of `count` bytes, (byte, token, column), the highest byte first.

        Also returns each token's scale, (token,): its largest magnitude over the largest such integer.
        """
        if count not in self._digits:
            digits = np.empty((count, *self.values.shape), np.int8)
            scales = np.empty(len(self.values), np.float32)
            patterns = self.values.view(np.int32)
            split = _split_in_two if count == 2 else _split_in_three
            run_in_parts(
                lambda start, stop: split(self.values, patterns, digits, scales, start, stop),
                len(self.values),
                digits.size,
            )
            self._digits[count] = digits, scales
        return self._digits[count]


@dataclass(eq=False)
class LayerInput:
    """A layer's input without padding. tensor, version: what it was made from; tokens: (token, column)."""

    tensor: Tensor
    version: int
    tokens: Tensor

    @cached_property
    def activations(self) -> Activations:
        """The tokens for compiled products."""
        return Activations(self.tokens.to(torch.float32).contiguous().numpy())

    def is_from(self, tensor: Tensor) -> bool:
        """Returns whether it was made from this tensor, which has not changed since."""
        return self.tensor is tensor and self.version == tensor._version


@compiled
def _split_in_two(
    values: FloatArray, patterns: NDArray[np.int32], digits: Digits, scales: FloatArray, first: int, last: int
) -> None:
    for token in range(first, last):
        peak = _peak(patterns[token])
        scales[token] = peak / np.float32(127 << 8)
        inverse = np.float32(127 << 8) / peak if peak > 0 else np.float32(0)
        line, high, low = values[token], digits[0, token], digits[1, token]
        for column in range(line.size):
            whole = np.int32(np.rint(line[column] * inverse))
            upper = (whole + np.int32(128)) >> np.int32(8)
            high[column] = np.int8(upper)
            low[column] = np.int8(whole - (upper << np.int32(8)))


@compiled
def _split_in_three(
    values: FloatArray, patterns: NDArray[np.int32], digits: Digits, scales: FloatArray, first: int, last: int
) -> None:
    for token in range(first, last):
        peak = _peak(patterns[token])
        scales[token] = peak / np.float32(127 << 16)
        inverse = np.float32(127 << 16) / peak if peak > 0 else np.float32(0)
        line, high, middle, low = values[token], digits[0, token], digits[1, token], digits[2, token]
        for column in range(line.size):
            whole = np.int32(np.rint(line[column] * inverse))
            rest = (whole + np.int32(128)) >> np.int32(8)
            low[column] = np.int8(whole - (rest << np.int32(8)))
            upper = (rest + np.int32(128)) >> np.int32(8)
            middle[column] = np.int8(rest - (upper << np.int32(8)))
            high[column] = np.int8(upper)


@compiled
def _peak(patterns: NDArray[np.int32]) -> Any:
    """Returns the largest magnitude: without the sign bit, patterns are ordered as their floats are."""
    largest = np.int32(0)
    for index in range(patterns.size):
        largest = max(largest, patterns[index] & np.int32(0x7FFFFFFF))
    return np.int32(largest).view(np.float32)
