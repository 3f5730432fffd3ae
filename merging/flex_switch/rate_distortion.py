"""Rate–distortion tables: the error of keeping a tensor's largest entries, by density and bit-width.

A histogram over the bit patterns of |τ| holds the count, sum and sum of squares of each bin, which give the
squared error of any threshold and any evenly spaced levels without reading the entries again.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled
from flexswitch.codecs.sparse import FloatArray

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

_SHIFT = 15  # bins of 2^-8 of their magnitude
_BINS = 1 << (32 - 1 - _SHIFT)
_DENSITIES = 96  # candidates, evenly spaced by logarithm
_SCALES = 12  # candidates of a scale at two bits or more


@dataclass(frozen=True, eq=False)
class RateDistortionTable:
    """The options of a tensor, all arrays (option,); the first option keeps nothing.

    thresholds: entries above are kept. kept: their number. errors: ‖τ − τ̂‖². masses: Σ |τ| of kept entries.
    """

    thresholds: FloatArray
    kept: Integers
    bits: Integers
    scales: Doubles
    errors: Doubles
    masses: Doubles


def rate_distortion_table(delta: FloatArray, bits: NDArray[np.int64]) -> RateDistortionTable:
    """Returns the options of density and bit-width, each with its best scale."""
    counts, sums, squares = np.zeros(_BINS, np.int64), np.zeros(_BINS), np.zeros(_BINS)
    _fill(delta.view(np.uint32), counts, sums, squares)
    found = np.flatnonzero(counts)[::-1]  # the largest magnitudes first
    edges = np.nextafter((found.astype(np.uint32) << _SHIFT).view(np.float32), np.float32(0))
    counts, sums, squares = counts[found], sums[found], squares[found]
    kept, total, masses = np.cumsum(counts), float(squares.sum()), np.cumsum(sums)
    left = total - np.cumsum(squares)  # the error of dropped entries
    wanted = np.geomspace(1, kept[-1], _DENSITIES)
    cuts = np.unique(np.minimum(np.searchsorted(kept, wanted), len(kept) - 1))
    # The threshold that keeps nothing is the largest magnitude, so that a lower one keeps something.
    rows = [(max(delta.max(), -delta.min()), 0, int(bits[0]), 0.0, total, 0.0)]
    for width in bits.tolist():
        for cut in cuts.tolist():
            taken = slice(0, cut + 1)
            scale, error = _best_scale(width, counts[taken], sums[taken], squares[taken])
            rows.append((edges[cut], int(kept[cut]), width, scale, float(left[cut]) + error, masses[cut]))
    thresholds, numbers, widths, scales, errors, masses = map(np.array, zip(*rows, strict=True))
    return RateDistortionTable(thresholds.astype(np.float32), numbers, widths, scales, errors, masses)


def _best_scale(bits: int, counts: Integers, sums: Doubles, squares: Doubles) -> tuple[float, float]:
    """Returns the scale with the least squared error of those tried, and that error."""
    kept, total = int(counts.sum()), float(sums.sum())
    mean = total / kept
    if bits == 1:
        return mean, float(squares.sum()) - total * mean
    largest = float(sums[0] / counts[0])
    scales = np.geomspace(mean, max(largest, mean), _SCALES)
    errors = np.empty(_SCALES)
    _quantisation_errors(bits, scales, counts, sums, squares, errors)
    best = int(errors.argmin())
    return float(scales[best]), float(errors[best])


@compiled
def _fill(patterns: NDArray[np.uint32], counts: Integers, sums: Doubles, squares: Doubles) -> None:
    for pattern in patterns:
        size = pattern & np.uint32(0x7FFF_FFFF)
        if size:
            place, value = size >> np.uint32(_SHIFT), np.float64(np.uint32(size).view(np.float32))
            counts[place] += 1
            sums[place] += value
            squares[place] += value * value


@compiled
def _quantisation_errors(
    bits: int, scales: Doubles, counts: Integers, sums: Doubles, squares: Doubles, errors: Doubles
) -> None:
    """Writes the squared error of each scale. All entries of a bin are quantised as its mean."""
    steps = (1 << bits) - 1
    for number in range(scales.size):
        error = np.float64(0)
        for index in range(counts.size):
            mean = sums[index] / counts[index]
            # Magnitudes take the upper half of the levels.
            level = min(
                max(np.floor((mean / scales[number] * steps + steps) / 2 + 0.5), (steps + 1) // 2), steps
            )
            value = scales[number] * (2 * level - steps) / steps
            error += squares[index] - 2 * value * sums[index] + value * value * counts[index]
        errors[number] = error
