"""The estimated size of a mask and its levels, fitted to the size that the codecs need.

The estimate is each row's entropy, n·H₂(p) + kept·bits, since the codec `context` adapts to the densities of
rows and flags empty rows. A factor for each tensor, real over estimated bits, is measured by storing the
current quantisation.
Source: docs/methods.md §4 (the rate R); Gao et al. 2026 (arXiv 2604.28109), SASS.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

RECORD_BITS = 8 * 32.0  # of a tensor's record in an artifact's table
_FACTOR_RANGE = (0.3, 3.0)
FIRST_FACTOR = 0.85


class Rate(NamedTuple):
    """Estimated bits of one tensor, and their derivatives with respect to its thresholds and shares."""

    bits: float
    by_threshold: Doubles
    by_share: Doubles


def row_entropy(kept: NDArray[np.int64], columns: int) -> float:
    """Returns the entropy in bits of the masks of rows. kept: (row,), entries kept of `columns` each."""
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
    """Returns a tensor's rate. kept, slopes: as `apply_gates` writes them."""
    mean_bits = float(shares @ bits)
    total = int(kept.sum())
    # A row that keeps nothing counts as half an entry, so that it has a slope.
    share = np.clip(kept / columns, 0.5 / columns, 1 - 0.5 / columns)
    by_kept = np.log2((1 - share) / share) + mean_bits
    found = factor * (row_entropy(kept, columns) + total * mean_bits) + RECORD_BITS
    return Rate(found, -factor * by_kept * slopes, factor * total * bits.astype(np.float64))


def fitted_factor(
    stored_bytes: int, kept: NDArray[np.int64], columns: int, bits: int, before: float
) -> float:
    """Returns the real over the estimated bits of a stored tensor, or `before` if too little is kept."""
    estimated = row_entropy(kept, columns) + int(kept.sum()) * bits
    if estimated < RECORD_BITS:
        return before
    return float(np.clip(8 * stored_bytes / estimated, *_FACTOR_RANGE))
