"""Sets entries of one task's delta to zero: all but the largest in magnitude, or but some ranks of them.

The thresholds are exact, and of equal entries the first ones rank higher, whatever the size of blocks.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.order_statistics import Integers, locate, threshold
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.static.order_statistic import Read, lower_counts, magnitude_counts
from flexswitch.merging.static.task_deltas import ModelDeltas, TensorDeltas


class Top:
    """The `count` entries of largest magnitude, marked block by block from the first to the last.

    least: the smallest of these magnitudes. above: the number of entries that exceed it.
    """

    def __init__(self, count: int, least: float, above: int) -> None:
        self._least, self._ties = np.float32(least), max(0, count - above)

    def marks(self, magnitudes: FloatArray) -> NDArray[np.bool_]:
        """Returns which entries of the next block belong to them."""
        marks = magnitudes > self._least
        equal = np.flatnonzero(magnitudes == self._least)[: self._ties]
        marks[equal] = True
        self._ties -= len(equal)
        return marks


def share(density: float, count: int) -> int:
    """Returns ⌊density · count⌋, with density taken as the decimal number that is printed for it.

    >>> share(0.29, 100)
    29
    """
    return math.floor(Fraction(str(density)) * count)


def tops(read: Read, counts: Sequence[int]) -> list[Top]:
    """Returns the `count` largest entries for each count; `read` is called once, and once for each count."""
    histogram = magnitude_counts(read())
    return [_top(read, histogram, count) for count in counts]


def model_thresholds(model: ModelDeltas, densities: Sequence[float]) -> tuple[float, ...]:
    """Returns for each task the magnitude that its largest entries reach, the model taken as one vector.

    Of d entries it is that of rank ⌊density · d⌋ + 1, as in the code of TIES-Merging; 0 where all are kept.
    """
    return model_order_statistics(model, [share(density, model.entries) + 1 for density in densities])


def model_order_statistics(model: ModelDeltas, ranks: Sequence[int]) -> tuple[float, ...]:
    """Returns for each task the magnitude at its rank from the largest, which is 1; 0 at ranks of zeros.

    The model is taken as one vector.
    """

    def statistics() -> tuple[float, ...]:
        places = [
            locate(counts, rank) if rank <= counts.sum() else None
            for counts, rank in zip(_model_counts(model), ranks, strict=True)
        ]
        lower = np.zeros((len(places), 1 << 16), np.int64)

        def count(name: str, task: int) -> Integers:
            place = places[task]
            return lower_counts(model.tensor(name).task_blocks(task), place.bin if place else -1)

        for task, counts in model.each(count):
            lower[task] += counts
        return tuple(
            threshold(place, each) if place else 0.0 for place, each in zip(places, lower, strict=True)
        )

    return model.once(("order statistics", tuple(ranks)), statistics)


def keep_reaching(blocks: Iterable[FloatArray], least: float) -> Iterator[FloatArray]:
    """Yields the blocks with entries below a magnitude set to zero."""
    for block in blocks:
        yield np.where(np.abs(block) >= np.float32(least), block, np.float32(0))


def keep_ranks(
    deltas: TensorDeltas, task: int, blocks: Iterable[FloatArray], first: int, last: int
) -> Iterator[FloatArray]:
    """Yields the blocks with all entries set to zero but those of ranks first < rank ≤ last by magnitude."""
    if first == last or (first, last) == (0, deltas.entries):
        for block in blocks:
            yield block if last > first else np.zeros_like(block)
        return
    counts = [count for count in (first, last) if 0 < count < deltas.entries]
    found = dict(zip(counts, tops(lambda: deltas.task_blocks(task), counts), strict=True))
    for block in blocks:
        magnitudes = np.abs(block)
        marks = found[last].marks(magnitudes) if last in found else np.full(len(block), last > 0)
        if first in found:
            marks &= ~found[first].marks(magnitudes)
        yield np.where(marks, block, np.float32(0))


def _top(read: Read, histogram: Integers, count: int) -> Top:
    place = locate(histogram, count) if count <= histogram.sum() else None
    if place is None:  # all that are not zero, and the first zeros
        return Top(count, 0.0, int(histogram.sum()))
    lower = lower_counts(read(), place.bin)
    least = threshold(place, lower)
    inner = int(np.float32(least).view(np.uint32)) & 0xFFFF
    above = int(histogram[place.bin + 1 :].sum() + lower[inner + 1 :].sum())
    return Top(count, least, above)


def _model_counts(model: ModelDeltas) -> list[Integers]:
    """Returns each task's number of entries in all tensors by the upper 15 bits of their magnitude."""

    def count(name: str, task: int) -> Integers:
        return magnitude_counts(model.tensor(name).task_blocks(task))

    def compute() -> list[Integers]:
        totals = [np.zeros(1 << 15, np.int64) for _ in model.tasks]
        for task, counts in model.each(count):
            totals[task] += counts
        return totals

    return model.once("magnitude counts", compute)
