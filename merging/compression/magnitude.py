"""Finds the largest entries of a delta, separately among the positive and the negative ones or among all.

The result is exact, and only the kept entries are held in memory (codecs/order_statistics.py).
Source: docs/methods.md §2; Qi et al. 2025 (arXiv 2412.00054).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled, few
from flexswitch.codecs.masks import Words, marked_entries, mask_of, mask_positions, mask_words
from flexswitch.codecs.order_statistics import (
    Place,
    add_lower,
    kept_count,
    locate,
    threshold,
    upper_histogram,
)
from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.sums import unmarked_square_sum

Bytes = NDArray[np.uint8]
Flags = NDArray[np.bool_]

_BINS = 1 << 16
_ONE = np.uint64(1)
_NONE = -1  # a bin that no entry falls into


class KeptBlock(NamedTuple):
    """The packed mask of a block's kept entries, their values, (kept,), and Σ τ² of the dropped ones."""

    mask: Bytes
    values: FloatArray
    dropped: float


def reaching(block: FloatArray, positive: float, negative: float) -> tuple[Bytes, FloatArray]:
    """Returns the packed mask of the entries that reach the threshold of their sign, and their values."""
    return _packed(block, _marks(block, (positive, negative))[0])


def kept_blocks(
    read: Callable[[], Iterable[FloatArray]], drop: float, sample: Callable[[], FloatArray] | None = None
) -> Iterator[KeptBlock]:
    """Yields the kept entries, block by block.

    The entries that a threshold may keep are collected in one reading, and those below it dropped again.
    What may be kept is guessed by a sample, `Delta.sample`. Without one, or where the guess was too high, it
    is known from a reading before that counts all entries by the upper halves of their bit patterns. Entries
    equal to the threshold are all kept. The caller may change the arrays.
    """
    guessed = _by_sample(read, drop, sample()) if sample is not None else None
    taken, places = guessed or _by_histogram(read, drop)
    lower = np.zeros((2, _BINS), np.int64)
    for block in taken:
        add_lower(block.values, [place.bin if place else _NONE for place in places], lower)
    positive, negative = (np.float32(found) for found in map(threshold, places, lower))
    for mask, values, dropped in taken:
        left = _reach(values, positive, negative)
        dropped += unmarked_square_sum(values, left)
        yield KeptBlock(*_without(mask, values, left), dropped)


def _without(mask: Bytes, values: FloatArray, left: Flags) -> tuple[Bytes, FloatArray]:
    """Returns a mask and its values without those that are not left."""
    if left.all():
        return mask, values
    if few(8 * len(mask)):
        return mask_of(mask_positions(mask, len(values))[left], 8 * len(mask)), values[left]
    words = mask_words(mask)
    count = _select(words, values, left)
    return words.astype("<u8", copy=False).view(np.uint8)[: len(mask)], values[:count]


def _by_histogram(
    read: Callable[[], Iterable[FloatArray]], drop: float
) -> tuple[list[KeptBlock], list[Place | None]]:
    """Returns the entries in the thresholds' bins and above, and the place of each sign's threshold."""
    sides = upper_histogram(read())
    places = [locate(side, kept_count(drop, int(side.sum()))) for side in sides]
    edges = [_smallest_of(place.bin) if place else math.inf for place in places]
    return [_taken(block, edges)[0] for block in read()], places


def _by_sample(
    read: Callable[[], Iterable[FloatArray]], drop: float, sample: FloatArray
) -> tuple[list[KeptBlock], list[Place | None]] | None:
    """Returns what `_by_histogram` does, with entries of lower bins; None if some are missing."""
    edges = [likely_edge(sample, drop), likely_edge(-sample, drop)]
    found = [_taken(block, edges) for block in read()]
    taken = [kept for kept, _ in found]
    counts = np.array([signs for _, signs in found], np.int64).reshape(-1, 2).sum(axis=0)
    sides = upper_histogram(block.values for block in taken)
    wanted = [kept_count(drop, int(count)) for count in counts]
    if any(side.sum() < count for side, count in zip(sides, wanted, strict=True)):
        return None
    return taken, [locate(side, count) for side, count in zip(sides, wanted, strict=True)]


def likely_edge(sample: FloatArray, drop: float) -> float:
    """Returns a magnitude that the threshold of the positive entries hardly lies below.

    sample: pieces of the delta, (pieces, entries). How much the pieces differ says how far the share of
    large entries in all of them may be from that of the delta: four standard errors are allowed for.
    """
    ordered = np.sort(sample[sample > 0])
    kept = kept_count(drop, len(ordered))
    if not kept:
        return _smallest_of(0)
    counts = np.count_nonzero(sample >= ordered[-kept], axis=1)  # (pieces,)
    error = float(counts.std()) * math.sqrt(len(counts)) + math.sqrt(kept)
    most = math.ceil(kept + 4 * error)
    return float(ordered[-most]) if most <= len(ordered) else _smallest_of(0)


def _taken(block: FloatArray, edges: Sequence[float]) -> tuple[KeptBlock, tuple[int, int]]:
    """Returns the entries that reach the edge of their sign, and the numbers above and below 0 in all."""
    marked, signs = _marks(block, edges)
    return KeptBlock(*_packed(block, marked), unmarked_square_sum(block, marked)), signs


def _packed(block: FloatArray, marked: Flags) -> tuple[Bytes, FloatArray]:
    mask = np.packbits(marked, bitorder="little")
    return mask, marked_entries(block, mask, int(np.count_nonzero(marked)))


def _marks(block: FloatArray, edges: Sequence[float]) -> tuple[Flags, tuple[int, int]]:
    positive, negative = np.float32(edges[0]), np.float32(edges[1])
    if few(len(block)):
        return _reach(block, positive, negative), (
            int(np.count_nonzero(block > 0)),
            int(np.count_nonzero(block < 0)),
        )
    marked = np.empty(len(block), np.bool_)
    return marked, _mark(block, positive, negative, marked)


def _reach(values: FloatArray, positive: np.float32, negative: np.float32) -> NDArray[np.bool_]:
    """Returns which values reach the threshold of their sign."""
    return (values >= positive) | (values <= -negative)


def _smallest_of(upper: int) -> float:
    """Returns the least positive float32 whose pattern's upper half is `upper`; zero has no entry."""
    return float(np.uint32(max(upper << 16, 1)).view(np.float32))


@compiled
def _mark(block: FloatArray, positive: np.float32, negative: np.float32, marked: Flags) -> tuple[int, int]:
    """Marks the entries that reach the threshold of their sign; returns how many are above and below 0."""
    above, below = np.int32(0), np.int32(0)  # of 32 bits, of which the processor adds many at a time
    for index in range(block.size):
        value = block[index]
        marked[index] = (value >= positive) | (value <= -negative)
        above += np.int32(value > 0)
        below += np.int32(value < 0)
    return int(above), int(below)


@compiled
def _select(words: Words, values: FloatArray, left: Flags) -> int:
    """Clears the bits whose value is not left, moves the others' values up and returns their number."""
    used, seen = 0, 0
    for index in range(words.size):
        word, kept = words[index], np.uint64(0)
        while word:
            values[used] = values[seen]  # without a branch: the next one overwrites it
            kept |= (word & (~word + _ONE)) * np.uint64(left[seen])
            used += left[seen]
            seen += 1
            word &= word - _ONE
        words[index] = kept
    return used
