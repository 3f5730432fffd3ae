"""Sums over a delta's blocks that don't depend on how it is cut into blocks."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled
from flexswitch.codecs.sparse import FloatArray

Doubles = NDArray[np.float64]

_LANES = 8


def steady_sum(blocks: Iterable[Doubles]) -> float:
    """Returns the sum of all terms, added up in an order that depends on their number alone.

    Every block but the last has a multiple of 8 terms.
    """
    sums = np.zeros(_LANES, np.float64)
    for block in blocks:
        _add(block, sums)
    total = 0.0
    for lane in sums.tolist():
        total += lane
    return total


def square_sum(values: FloatArray) -> float:
    """Returns Σ values² in float64, added up in an order that depends on their number alone."""
    return float(_square_sum(values))


@compiled
def _add(terms: Doubles, sums: Doubles) -> None:
    # Eight sums side by side: one alone would wait for each addition.
    whole = terms.size // _LANES * _LANES
    for start in range(0, whole, _LANES):
        for lane in range(_LANES):
            sums[lane] += terms[start + lane]
    for index in range(whole, terms.size):
        sums[index - whole] += terms[index]


@compiled
def _square_sum(values: FloatArray) -> np.float64:
    # Eight sums side by side: one alone would wait for each addition.
    sums = np.zeros(8, np.float64)
    whole = values.size // 8 * 8
    for start in range(0, whole, 8):
        for lane in range(8):
            value = np.float64(values[start + lane])
            sums[lane] += value * value
    for index in range(whole, values.size):
        value = np.float64(values[index])
        sums[index - whole] += value * value
    total = np.float64(0)
    for lane in range(8):
        total += sums[lane]
    return total
