"""How many bytes the codecs will take for a mask and its levels, fitted to what they took.

The estimate is each row's entropy, n·H₂(p) + kept·bits, since the codec `context` learns the densities of
rows, and empty rows are left out behind flags. A factor a unit, real over estimated, is measured by storing
what is kept so far.
Source: docs/methods.md §4 (the rate R); Gao et al. 2026 (arXiv 2604.28109), SASS.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

RECORD_BITS = 8 * 32.0  # what a tensor's record takes in an artifact's table
_FACTOR_RANGE = (0.3, 3.0)
FIRST_FACTOR = 0.85


class Rate(NamedTuple):
    """Estimated bits of one unit, and their derivatives by its rows' thresholds and by its shares."""

    bits: float
    by_threshold: Doubles
    by_share: Doubles


def row_entropy(kept: NDArray[np.int64], columns: int) -> float:
    """Returns the bits of the masks of rows that keep so many entries of `columns` each, (row,)."""
    share = kept / columns
    inside = share[(share > 0) & (share < 1)]
    return float(columns * -(inside * np.log2(inside) + (1 - inside) * np.log2(1 - inside)).sum())


def rate_of(
    kept: NDArray[np.int64],
    slopes: Doubles,
    columns: int,
    bits: NDArray[np.int64],
    shares: Doubles,
    factor: float,
) -> Rate:
    """Returns a unit's rate, `kept` and `slopes` as `apply_gates` gives them."""
    mean_bits = float(shares @ bits)
    total = int(kept.sum())
    # A row that keeps nothing yet is taken as if it kept half an entry, so that it still has a slope.
    share = np.clip(kept / columns, 0.5 / columns, 1 - 0.5 / columns)
    by_kept = np.log2((1 - share) / share) + mean_bits
    found = factor * (row_entropy(kept, columns) + total * mean_bits) + RECORD_BITS
    return Rate(found, -factor * by_kept * slopes, factor * total * bits.astype(np.float64))


def fitted_factor(
    stored_bytes: int, kept: NDArray[np.int64], columns: int, bits: int, before: float
) -> float:
    """Returns real over estimated bits of what is stored; `before` where too little is kept to tell."""
    estimated = row_entropy(kept, columns) + int(kept.sum()) * bits
    if estimated < RECORD_BITS:
        return before
    return float(np.clip(8 * stored_bytes / estimated, *_FACTOR_RANGE))
