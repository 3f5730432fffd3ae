"""Exact order statistics, over the whole model, of signed values that are computed from all tasks' deltas."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from flexswitch.codecs.order_statistics import (
    Integers,
    Place,
    locate,
    lower_histogram,
    threshold,
    upper_histogram,
)
from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.threads import map_in_order
from flexswitch.merging.static.task_deltas import ModelDeltas

Values = Callable[[FloatArray], FloatArray]  # deltas (task, entry) → values (task, entry), float32


class _SignedPlace(NamedTuple):
    """Where a value that is not 0 lies in the histogram of the magnitudes of its sign; 1 is negative."""

    sign: int
    place: Place


def signed_order_statistics(model: ModelDeltas, values: Values, ranks: Sequence[int]) -> list[list[float]]:
    """Returns for each rank from the largest, which is 1, every task's value there, [rank][task].

    The deltas are read once, and once for each rank.
    """

    def upper(row: FloatArray, task: int) -> Integers:
        return upper_histogram([row])

    histograms = _counted(model, values, upper)
    found = []
    for rank in ranks:
        places = [_place(each, model.entries, rank) for each in histograms]

        def lower(row: FloatArray, task: int, places: Sequence[_SignedPlace | None] = places) -> Integers:
            wanted = places[task]
            bins = [-1 if wanted is None or wanted.sign != sign else wanted.place.bin for sign in (0, 1)]
            return lower_histogram([row], bins)

        inner = _counted(model, values, lower)
        found.append([_value(each, counts) for each, counts in zip(places, inner, strict=True)])
    return found


def _counted(
    model: ModelDeltas, values: Values, count: Callable[[FloatArray, int], Integers]
) -> list[Integers]:
    """Returns each task's counts over all tensors; count: (values of a block, task) → counts."""

    def of_tensor(name: str) -> list[Integers]:
        totals: list[Integers] = []
        for block in model.tensor(name).blocks():
            found = [count(row, task) for task, row in enumerate(values(block.deltas.numpy()))]
            totals = [one + other for one, other in zip(totals, found, strict=True)] if totals else found
        return totals

    names = [name for name in model.names if model.base.tensors[name].entries]
    parts = map_in_order(of_tensor, names, model.jobs)
    totals = next(parts)
    for part in parts:
        totals = [one + other for one, other in zip(totals, part, strict=True)]
    return totals


def _place(counts: Integers, entries: int, rank: int) -> _SignedPlace | None:
    """Returns where the value of a rank lies; None for 0. counts: (sign, bin), without zeros."""
    positive, negative = (int(each.sum()) for each in counts)
    below = rank - (entries - negative)
    sign, place = (
        (0, locate(counts[0], rank)) if rank <= positive else (1, locate(counts[1], negative - below + 1))
    )
    return None if place is None or positive < rank <= entries - negative else _SignedPlace(sign, place)


def _value(wanted: _SignedPlace | None, counts: Integers) -> float:
    if wanted is None:
        return 0.0
    magnitude = threshold(wanted.place, counts[wanted.sign])
    return -magnitude if wanted.sign else magnitude
