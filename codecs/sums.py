"""Sums over a delta's blocks that don't depend on how it is cut into blocks."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled

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


@compiled
def _add(terms: Doubles, sums: Doubles) -> None:
    # Eight sums side by side: one alone would wait for each addition.
    whole = terms.size // _LANES * _LANES
    for start in range(0, whole, _LANES):
        for lane in range(_LANES):
            sums[lane] += terms[start + lane]
    for index in range(whole, terms.size):
        sums[index - whole] += terms[index]
