"""Exact order statistics of any number of entries, from counts by bit pattern in two readings.

float32 numbers of one sign are ordered as their bit patterns are, so a histogram of the upper 16 bits and one
of the lower 16 bits determine the number at a rank.
"""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled, few
from flexswitch.codecs.sparse import FloatArray

Integers = NDArray[np.int64]

_BINS = 1 << 16


def kept_count(drop: float, count: int) -> int:
    """Returns ⌊(1 − drop) · count⌋, with drop taken as the decimal number that is printed for it.

    >>> kept_count(0.93, 100)
    7
    """
    return math.floor((1 - Fraction(str(drop))) * count)


class Place(NamedTuple):
    """A bin of a histogram and a rank counted from the bin's top, from 1."""

    bin: int
    rank: int


def locate(histogram: Integers, wanted: int) -> Place | None:
    """Returns where the `wanted`-th largest entry lies; None if `wanted` is 0."""
    if wanted == 0:
        return None
    above = np.cumsum(histogram[::-1])  # entries in the topmost 1, 2, … bins
    step = int(np.searchsorted(above, wanted))
    return Place(len(histogram) - 1 - step, wanted - int(above[step - 1] if step else 0))


def threshold(place: Place | None, lower: Integers) -> float:
    """Returns the magnitude at a place, given the histogram of the lower halves in its bin."""
    inner = locate(lower, place.rank) if place else None
    if place is None or inner is None:
        return math.inf
    return float(np.uint32(place.bin << 16 | inner.bin).view(np.float32))


def upper_histogram(blocks: Iterable[FloatArray]) -> Integers:
    """Returns the number of entries by sign and upper 15 bits of the magnitude, without zeros, (2, 2^15)."""
    counts = np.zeros(_BINS, np.int64)
    for block in blocks:
        patterns = block.view(np.uint32)
        if few(len(patterns)):
            counts += np.bincount(patterns >> np.uint32(16), minlength=_BINS)
        else:
            count_upper(patterns, counts)
        for zero in (0, 1 << 31):  # of either sign
            if counts[zero >> 16]:
                counts[zero >> 16] -= np.count_nonzero(patterns == np.uint32(zero))
    return counts.reshape(2, -1)


def lower_histogram(blocks: Iterable[FloatArray], bins: Sequence[int]) -> Integers:
    """Returns the number of entries by lower 16 bits in one positive and one negative bin, (2, 2^16)."""
    counts = np.zeros((2, _BINS), np.int64)
    for block in blocks:
        add_lower(block, bins, counts)
    return counts


def add_lower(block: FloatArray, bins: Sequence[int], counts: Integers) -> None:
    """Adds the entries in one positive and one negative bin to their number by lower 16 bits, (2, 2^16)."""
    patterns = block.view(np.uint32)
    if few(len(patterns)):
        for row, wanted in zip(counts, (bins[0], bins[1] + _BINS // 2 if bins[1] >= 0 else -1), strict=True):
            inside = patterns[patterns >> np.uint32(16) == wanted]
            row += np.bincount(inside & np.uint32(0xFFFF), minlength=_BINS)
    else:
        count_lower(patterns, bins[0], bins[1], counts)


@compiled
def count_upper(patterns: NDArray[np.uint32], counts: Integers) -> None:
    """Counts float32 bit patterns by their upper half."""
    for pattern in patterns:
        counts[pattern >> np.uint32(16)] += 1


@compiled
def count_lower(patterns: NDArray[np.uint32], positive: int, negative: int, counts: Integers) -> None:
    """Counts by their lower half the patterns whose upper half is one of two, (sign, lower half)."""
    # No upper half of a float32 pattern reaches 2^16.
    first = np.uint32(positive if positive >= 0 else _BINS)
    second = np.uint32(negative + _BINS // 2 if negative >= 0 else _BINS)
    for pattern in patterns:
        half = pattern >> np.uint32(16)
        if half == first:
            counts[0, pattern & np.uint32(0xFFFF)] += 1
        elif half == second:
            counts[1, pattern & np.uint32(0xFFFF)] += 1
