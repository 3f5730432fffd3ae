"""Finds the largest entries of a delta, separately among the positive and the negative ones or among all.

The result is exact, and only the kept entries are held in memory (codecs/order_statistics.py).
Source: docs/methods.md §2; Qi et al. 2025 (arXiv 2412.00054).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled, few
from flexswitch.codecs.masks import COUNTS, PLACES, count_bits, mask_of, mask_positions
from flexswitch.codecs.order_statistics import (
    Integers,
    add_lower,
    kept_count,
    locate,
    threshold,
    upper_histogram,
)
from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.sums import square_sum

Bytes = NDArray[np.uint8]

_BINS = 1 << 16
_NONE = -1  # a bin that no entry falls into


class KeptBlock(NamedTuple):
    """The packed mask of a block's kept entries, their values, (kept,), and Σ τ² of the dropped ones."""

    mask: Bytes
    values: FloatArray
    dropped: float


def reaching(block: FloatArray, positive: float, negative: float) -> tuple[Bytes, FloatArray]:
    """Returns the packed mask of the entries that reach the threshold of their sign, and their values."""
    if few(len(block)):
        marked = _reach(block, np.float32(positive), np.float32(negative))
        return np.packbits(marked, bitorder="little"), block[marked]
    mask = np.empty(-(-len(block) // 8), np.uint8)
    _pack(block, np.float32(positive), np.float32(negative), mask)
    values = np.empty(count_bits(mask) + 8, np.float32)
    return mask, values[: _gather(block, mask, values)]


def kept_blocks(read: Callable[[], Iterable[FloatArray]], drop: float) -> Iterator[KeptBlock]:
    """Yields the kept entries, block by block.

    `read` is called twice: for the histogram of the upper halves, and to collect all entries in the
    threshold's bin and above. The lower halves of these entries are counted, and the few that lie below the
    threshold are dropped again. Entries equal to the threshold are all kept. The caller may change the
    arrays.
    """
    sides = upper_histogram(read())
    places = [locate(side, kept_count(drop, int(side.sum()))) for side in sides]
    bins = [place.bin if place else _NONE for place in places]
    edges = [_smallest_of(place.bin) if place else math.inf for place in places]
    taken = []
    lower = np.zeros((2, _BINS), np.int64)
    for block in read():
        mask, values = reaching(block, edges[0], edges[1])
        add_lower(values, bins, lower)
        taken.append((mask, values, dropped_square(block, mask)))
    positive, negative = (np.float32(found) for found in map(threshold, places, lower))
    for mask, values, dropped in taken:
        if few(8 * len(mask)):
            left = _reach(values, positive, negative)
            places_left = mask_positions(mask, len(values))[left]
            again = square_sum(values[~left])
            yield KeptBlock(mask_of(places_left, 8 * len(mask)), values[left], dropped + again)
            continue
        ranks = np.empty(len(values) + 1, np.int64)
        ranks = ranks[: _rank_below(values, positive, negative, ranks)]
        _clear(mask, ranks)
        again = square_sum(values[ranks])
        _close_up(values, ranks)
        yield KeptBlock(mask, values[: len(values) - len(ranks)], dropped + again)


def dropped_square(block: FloatArray, mask: Bytes) -> float:
    """Returns Σ τ² of the entries of a block that a packed mask does not mark, in float64."""
    if few(len(block)):
        marked = np.unpackbits(mask, count=len(block), bitorder="little").view(np.bool_)
        return square_sum(block[~marked])
    sums = np.zeros(8, np.float64)
    _add_dropped(block, mask, sums)
    return math.fsum(sums.tolist())


def _reach(values: FloatArray, positive: np.float32, negative: np.float32) -> NDArray[np.bool_]:
    """Returns which values reach the threshold of their sign."""
    return (values >= positive) | (values <= -negative)


def _smallest_of(upper: int) -> float:
    """Returns the least positive float32 whose pattern's upper half is `upper`; zero has no entry."""
    return float(np.uint32(max(upper << 16, 1)).view(np.float32))


@compiled
def _add_dropped(block: FloatArray, mask: Bytes, sums: NDArray[np.float64]) -> None:
    for index in range(block.size // 8):
        byte = mask[index]
        for place in range(8):
            value = np.float64(block[8 * index + place])
            sums[place] += 0.0 if (byte >> place) & 1 else value * value
    for index in range(block.size // 8 * 8, block.size):
        value = np.float64(block[index])
        sums[index & 7] += 0.0 if (mask[index >> 3] >> (index & 7)) & 1 else value * value


@compiled
def _pack(block: FloatArray, least_positive: np.float32, least_negative: np.float32, mask: Bytes) -> None:
    whole = block.size // 8
    for index in range(whole):
        byte = 0
        for place in range(8):
            value = block[8 * index + place]
            byte |= ((value >= least_positive) | (value <= -least_negative)) << place
        mask[index] = byte
    if whole < mask.size:
        byte = 0
        for place in range(block.size - 8 * whole):
            value = block[8 * whole + place]
            byte |= ((value >= least_positive) | (value <= -least_negative)) << place
        mask[whole] = byte


@compiled
def _gather(block: FloatArray, mask: Bytes, values: FloatArray) -> int:
    """Writes the marked entries of a block to `values`, which has room for 8 more; returns their number."""
    used, whole = 0, block.size // 8
    for index in range(whole):
        byte = mask[index]
        for place in range(8):  # without a branch: the next byte overwrites the dropped ones
            values[used + place] = block[8 * index + PLACES[byte, place]]
        used += COUNTS[byte]
    for index in range(8 * whole, block.size):
        if (mask[whole] >> (index & 7)) & 1:
            values[used] = block[index]
            used += 1
    return used


@compiled
def _rank_below(values: FloatArray, positive: np.float32, negative: np.float32, ranks: Integers) -> int:
    """Writes the indices of values below both thresholds; returns their number.

    ranks has one entry more than needed.
    """
    used = 0
    for index in range(values.size):
        ranks[used] = index  # without a branch: the next one overwrites it
        used += not ((values[index] >= positive) | (values[index] <= -negative))
    return used


@compiled
def _close_up(values: FloatArray, ranks: Integers) -> None:
    """Removes the values at these increasing ranks by moving the others up."""
    for number in range(ranks.size):
        stop = ranks[number + 1] if number + 1 < ranks.size else values.size
        for index in range(ranks[number] + 1, stop):
            values[index - number - 1] = values[index]


@compiled
def _clear(mask: Bytes, ranks: Integers) -> None:
    """Clears the set bits with these increasing ranks among all set bits, counted from 0."""
    index, before = 0, 0  # `before` set bits lie in front of the byte `index`
    for rank in ranks:
        while before + COUNTS[mask[index]] <= rank:
            before += COUNTS[mask[index]]
            index += 1
        # The bits of this byte that have been cleared already are counted.
        place = PLACES[mask[index], rank - before]
        mask[index] &= ~(np.uint8(1) << place)
        before += 1
