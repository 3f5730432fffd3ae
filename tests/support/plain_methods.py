"""T-Switch and P-Discard by docs/methods.md §2, written anew by sorting, for the tests that compare with them."""

import math
from decimal import ROUND_FLOOR, Decimal

import numpy as np
from numpy.typing import NDArray
from support.deltas import Floats


def reference_mask(values: Floats, drop: str) -> NDArray[np.bool_]:
    """Returns which entries are kept: of each sign the ⌊(1 − α)·n⌋ largest, and all that equal the last."""
    flat = [float(value) for value in values.reshape(-1)]
    kept = np.zeros(len(flat), np.bool_)
    for side in ([v if v > 0 else 0.0 for v in flat], [-v if v < 0 else 0.0 for v in flat]):
        ranked = sorted((magnitude for magnitude in side if magnitude), reverse=True)
        count = int(((1 - Decimal(drop)) * len(ranked)).to_integral_value(ROUND_FLOOR))
        if count:
            kept |= np.array(side) >= ranked[count - 1]
    return kept


def reference_scale(kept_values: Floats) -> np.float32:
    """Returns ‖kept‖₂ / √(number kept) in float64, rounded once."""
    if not len(kept_values):
        return np.float32(0)
    norm = math.sqrt(math.fsum(float(value) ** 2 for value in kept_values))
    return np.float32(norm / math.sqrt(len(kept_values)))
