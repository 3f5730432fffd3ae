"""Exact order statistics of values that are computed anew at each reading."""

import math
from collections.abc import Callable, Iterable, Sequence

from flexswitch.codecs.order_statistics import Integers, locate, lower_histogram, threshold, upper_histogram
from flexswitch.codecs.sparse import FloatArray

Read = Callable[[], Iterable[FloatArray]]


def largest_reach(read: Read, count: int) -> float:
    """Returns the magnitude that the `count` largest values reach; infinity if that is none of them."""
    return math.inf if count == 0 else of_ranks(read, [count])[0]


def of_ranks(read: Read, ranks: Sequence[int]) -> list[float]:
    """Returns the magnitudes at ranks from the largest, which is 1; 0 at ranks of values that are 0.

    `read` is called once, and once for each rank.
    """
    histogram = magnitude_counts(read())
    places = [locate(histogram, rank) if rank <= histogram.sum() else None for rank in ranks]
    return [
        threshold(place, lower_counts(read(), place.bin)) if place is not None else 0.0 for place in places
    ]


def magnitude_counts(blocks: Iterable[FloatArray]) -> Integers:
    """Returns the number of values by the upper 15 bits of their magnitude, zeros left out, (2^15,)."""
    counts: Integers = upper_histogram(blocks).sum(axis=0)
    return counts


def lower_counts(blocks: Iterable[FloatArray], upper: int) -> Integers:
    """Returns the number of values by the lower 16 bits of the magnitude in one bin, (2^16,)."""
    counts: Integers = lower_histogram(blocks, (upper, upper)).sum(axis=0)
    return counts
