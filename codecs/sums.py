"""Sums that add their terms in an order given by their number alone, not by how they are cut into blocks."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled, few
from flexswitch.codecs.sparse import FloatArray

Doubles = NDArray[np.float64]
Flags = NDArray[np.bool_]

_PART = 1 << 10  # terms at once, which stay in the processor's first cache
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


def unmarked_square_sum(values: FloatArray, marked: Flags) -> float:
    """Returns Σ values² of those that are not marked, in float64."""
    sums = np.zeros(_LANES, np.float64)
    if few(len(values)):
        _add(values * ~marked, sums, True)
    else:
        _add_unmarked(values, marked, sums)
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
    terms = np.empty(_PART, np.float64)
    for start in range(0, values.size, _PART):
        part = values[start : start + _PART]
        for index in range(part.size):
            value = np.float64(part[index])
            terms[index] = value * value if squared else value
        _add_terms(terms[: part.size], sums)


@compiled
def _add_unmarked(values: FloatArray, marked: Flags, sums: Doubles) -> None:
    terms = np.empty(_PART, np.float64)
    for start in range(0, values.size, _PART):
        part, without = values[start : start + _PART], marked[start : start + _PART]
        for index in range(part.size):
            value = np.float64(part[index])
            terms[index] = 0.0 if without[index] else value * value
        _add_terms(terms[: part.size], sums)


@compiled
def _add_terms(terms: Doubles, sums: Doubles) -> None:
    # Variables of their own, since the compiler does not keep entries of an array in registers.
    # Entry by entry, since taking an array apart compiles for two seconds.
    s0, s1, s2, s3 = sums[0], sums[1], sums[2], sums[3]
    s4, s5, s6, s7 = sums[4], sums[5], sums[6], sums[7]
    whole = terms.size // 8 * 8
    for index in range(0, whole, 8):
        s0 += terms[index]
        s1 += terms[index + 1]
        s2 += terms[index + 2]
        s3 += terms[index + 3]
        s4 += terms[index + 4]
        s5 += terms[index + 5]
        s6 += terms[index + 6]
        s7 += terms[index + 7]
    sums[0], sums[1], sums[2], sums[3] = s0, s1, s2, s3
    sums[4], sums[5], sums[6], sums[7] = s4, s5, s6, s7
    for index in range(whole, terms.size):
        sums[index - whole] += terms[index]
