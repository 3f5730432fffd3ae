"""The data-free allocation: density and bit-width of every tensor under one multiplier.

Minimises Σ ‖τ − τ̂‖² + μ · bits over the options of each tensor, for the μ that meets the size.
Source: docs/methods.md §4, "Data-free FlexSwitch".
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.sparse import binary_entropy
from flexswitch.merging.flex_switch.rate import RECORD_BITS
from flexswitch.merging.flex_switch.rate_distortion import RateDistortionTable

Doubles = NDArray[np.float64]

_HALVINGS = 100


def option_bits(table: RateDistortionTable, entries: int, factor: float) -> Doubles:
    """Returns the estimated bits of each option of a tensor, (option,). Keeping nothing takes 0 bits."""
    entropies = np.array([entries * binary_entropy(kept / entries) for kept in table.kept.tolist()])
    bits = factor * (entropies + table.kept * table.bits) + RECORD_BITS
    bits[table.kept == 0] = 0
    return np.asarray(bits)


def allocate(tables: Sequence[RateDistortionTable], bits: Sequence[Doubles], target: float) -> list[int]:
    """Returns the option of each tensor with the least error + multiplier · bits, within `target` bits."""
    low, high = 1e-40, 1e40  # multipliers: error per bit
    for _ in range(_HALVINGS):
        middle = float(np.sqrt(low * high))
        if _total(tables, bits, middle) > target:
            low = middle
        else:
            high = middle
    return _chosen(tables, bits, high)


def _chosen(tables: Sequence[RateDistortionTable], bits: Sequence[Doubles], multiplier: float) -> list[int]:
    return [
        int(np.argmin(table.errors + multiplier * cost)) for table, cost in zip(tables, bits, strict=True)
    ]


def _total(tables: Sequence[RateDistortionTable], bits: Sequence[Doubles], multiplier: float) -> float:
    return sum(
        float(cost[chosen]) for cost, chosen in zip(bits, _chosen(tables, bits, multiplier), strict=True)
    )
