"""Finds the largest entries of a delta, separately among the positive and the negative ones.

Exact for any size in bounded memory: the bit patterns of float32 numbers of one sign are ordered as
the numbers are, so two histograms, of the upper and then of the lower 16 bits, give the threshold.
Source: methods, §2; Qi et al. 2025 (arXiv 2412.00054).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.errors import UsageError
from flexswitch.codecs.sparse import FloatArray

_SIGN = np.uint32(0x8000_0000)
_BINS = 1 << 16


def kept_count(drop: float, count: int) -> int:
    """Returns ⌊(1 − drop) · count⌋, drop read as the decimal it is written as.

    >>> kept_count(0.93, 100)
    7
    """
    return math.floor((1 - Fraction(str(drop))) * count)


def check_drop(drop: float) -> None:
    """Raises: UsageError where a drop rate lies outside [0, 1)."""
    if not 0 <= drop < 1:
        raise UsageError(f"drop={drop}: expected a share of at least 0 and below 1")


def two_sided_thresholds(read: Callable[[], Iterable[FloatArray]], drop: float) -> tuple[float, float]:
    """Returns the least magnitude kept among the positive and among the negative entries.

    `read` gives the delta's blocks anew; it is read twice. Infinity where a side keeps nothing.
    """
    upper = np.zeros(_BINS, np.int64)  # by sign and upper 15 bits of the magnitude
    zeros = np.zeros(2, np.int64)
    for block in read():
        bits = block.view(np.uint32)
        upper += np.bincount(bits >> np.uint32(16), minlength=_BINS)
        zeros += [np.count_nonzero(bits == 0), np.count_nonzero(bits == _SIGN)]
    sides = upper.reshape(2, -1)  # (sign, upper 15 bits)
    sides[:, 0] -= zeros
    places = [_locate(side, kept_count(drop, int(side.sum()))) for side in sides]
    lower = np.zeros((2, _BINS), np.int64)
    for block in read() if any(places) else ():
        bits = block.view(np.uint32)
        high = bits >> np.uint32(16)
        for sign, place in enumerate(places):
            if place is not None:
                inside = bits[high == place.bin + sign * (_BINS // 2)]
                lower[sign] += np.bincount(inside & np.uint32(0xFFFF), minlength=_BINS)
    positive, negative = map(_threshold, places, lower)
    return positive, negative


def kept_blocks(
    read: Callable[[], Iterable[FloatArray]], drop: float
) -> Iterator[tuple[NDArray[np.bool_], FloatArray]]:
    """Yields, block by block, which entries are kept and their values; ties at a threshold are all kept."""
    least_positive, least_negative = two_sided_thresholds(read, drop)
    for block in read():
        kept = (block >= least_positive) | (block <= -least_negative)
        yield kept, block[kept]


class _Place(NamedTuple):
    """A bin of a histogram and a rank counted from the bin's top, from 1."""

    bin: int
    rank: int


def _locate(histogram: NDArray[np.int64], wanted: int) -> _Place | None:
    """Returns where the `wanted`-th largest entry lies; None where none is wanted."""
    if wanted == 0:
        return None
    above = np.cumsum(histogram[::-1])  # entries in the topmost 1, 2, … bins
    step = int(np.searchsorted(above, wanted))
    return _Place(len(histogram) - 1 - step, wanted - int(above[step - 1] if step else 0))


def _threshold(place: _Place | None, lower: NDArray[np.int64]) -> float:
    """Returns the magnitude at a place, given the histogram of the lower halves in its bin."""
    inner = _locate(lower, place.rank) if place else None
    if place is None or inner is None:
        return math.inf
    return float(np.uint32(place.bin << 16 | inner.bin).view(np.float32))
