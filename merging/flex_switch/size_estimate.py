"""Estimates how the size changes when all thresholds are multiplied by one factor, without storing anything.

It interpolates the estimate of allocation.py between the densities of the tables. It is proportional enough
to the real size that a few real sizes suffice to reach a target.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.flex_switch.allocation import option_bits
from flexswitch.merging.flex_switch.delta_rows import DeltaRows, Quantisation
from flexswitch.merging.flex_switch.rate_distortion import RateDistortionTable

# Shift of log thresholds → estimated bits of the entries that are kept then; never increases.
SizeEstimate = Callable[[float], float]

_TINY = 1e-38


def size_estimate(
    tensors: Sequence[DeltaRows], tables: Sequence[RateDistortionTable], quantised: Sequence[Quantisation]
) -> SizeEstimate:
    """Returns the size estimate of a quantisation, by the median of each tensor's thresholds.

    Above the density that takes the most bits it stays constant, though masks of nearly all entries take
    fewer.
    """
    middles, curves = [], []
    for tensor, table, kept in zip(tensors, tables, quantised, strict=True):
        own = np.flatnonzero((table.bits == kept.bits) | (table.kept == 0))
        own = own[np.argsort(-table.thresholds[own], kind="stable")]
        bits = np.maximum.accumulate(option_bits(table, tensor.entries, 1.0)[own])
        curves.append((_log(table.thresholds[own])[::-1], bits[::-1]))
        middles.append(float(_log(np.array(np.median(kept.thresholds)))))

    def found(shift: float) -> float:
        parts = zip(middles, curves, strict=True)
        return float(sum(np.interp(middle + shift, *curve, right=0.0) for middle, curve in parts))

    return found


def _log(thresholds: FloatArray) -> NDArray[np.float64]:
    return np.asarray(np.log(np.maximum(thresholds.astype(np.float64), _TINY)))
