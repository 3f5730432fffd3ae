"""Sums that add their terms in an order given by their number alone, not by how they are cut into blocks."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled, few
from flexswitch.codecs.sparse import FloatArray

Doubles = NDArray[np.float64]

_LANES = 8  # sums that run side by side: one alone would wait for each addition


def steady_sum(blocks: Iterable[Doubles]) -> float:
    """Returns the sum of all terms in float64. Every block but the last has a multiple of 8 terms."""
    sums = np.zeros(_LANES, np.float64)
    for block in blocks:
        _add(block, sums, False)
    return _total(sums)


def square_sum(values: FloatArray | Doubles) -> float:
    """Returns Σ values² in float64."""
    sums = np.zeros(_LANES, np.float64)
    _add(values, sums, True)
    return _total(sums)


def magnitude_sum(values: FloatArray) -> float:
    """Returns Σ |value| in float64."""
    sums = np.zeros(_LANES, np.float64)
    _add(np.abs(values), sums, False)
    return _total(sums)


def _add(values: FloatArray | Doubles, sums: Doubles, squared: bool) -> None:
    if few(len(values)):
        terms = np.zeros((len(values) // _LANES + 2, _LANES))  # (row, lane); at the end + 0
        terms[0] = sums
        flat = terms[1:].reshape(-1)[: len(values)]
        flat[:] = values
        if squared:
            flat *= flat
        sums[:] = np.add.accumulate(terms)[-1]  # row after row
    else:
        _add_up(values, sums, squared)


def _total(sums: Doubles) -> float:
    total = 0.0
    for lane in sums.tolist():  # the built-in sum rounds differently from Python 3.12 on
        total += lane
    return total


@compiled
def _add_up(values: FloatArray | Doubles, sums: Doubles, squared: bool) -> None:
    whole = values.size // _LANES * _LANES
    for start in range(0, whole, _LANES):
        for lane in range(_LANES):
            value = np.float64(values[start + lane])
            sums[lane] += value * value if squared else value
    for index in range(whole, values.size):
        value = np.float64(values[index])
        sums[index - whole] += value * value if squared else value
