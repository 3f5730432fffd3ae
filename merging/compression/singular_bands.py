"""Bands of singular vectors, quantised column by column: a matrix is the sum of its bands.

Each vector has the scale of least squared error. Source: Ping et al. 2024 (arXiv 2406.08903), section 4, with
levels instead of GPTQ.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flexswitch.merging.compression.delta import Compressed, assemble

Doubles = NDArray[np.float64]

WEIGHT_BITS = 32  # of a singular value times its vectors' scales
_SCALES = np.arange(20, 3, -1) / 20  # of a vector, over its largest magnitude
_DIGITS = 4


class Columns(NamedTuple):
    """Quantised vectors: their levels, uint8, which entries are not 0, (n, k), and their scales, (k,)."""

    levels: NDArray[np.uint8]
    kept: NDArray[np.bool_]
    scales: Doubles

    def values(self, bits: int) -> Doubles:
        """Returns the vectors that they stand for, (n, k)."""
        steps = (1 << bits) - 1
        return self.scales * (2.0 * self.levels - steps) / steps * self.kept

    def spread(self, rows: NDArray[np.int64], count: int) -> "Columns":
        """Returns the vectors among `count` rows; `rows` says where, and the others are 0."""
        shape = count, self.levels.shape[1]
        levels, kept = np.zeros(shape, np.uint8), np.zeros(shape, np.bool_)
        levels[rows], kept[rows] = self.levels, self.kept
        return Columns(levels, kept, self.scales)


def quantised(vectors: Doubles, bits: int) -> Columns:
    """Returns vectors, (n, k), in levels, with the scales of least squared error of those tried.

    The levels of b bits are evenly spaced and none is zero. The scales tried are the largest magnitude times
    1, 0.95, ..., 0.2; entries that are 0 do not count.
    """
    steps, largest = (1 << bits) - 1, np.abs(vectors).max(axis=0)
    levels, scales = np.zeros(vectors.shape, np.uint8), np.zeros(len(largest))
    least = np.full(len(largest), np.inf)
    for factor in _SCALES:
        tried = factor * largest
        found = np.clip(np.floor((vectors / tried * steps + steps) / 2 + 0.5), 0, steps)
        off = np.where(vectors != 0, vectors - tried * (2 * found - steps) / steps, 0)
        errors = np.square(off).sum(axis=0)
        better = errors < least
        least = np.where(better, errors, least)
        scales = np.where(better, tried, scales)
        levels[:, better] = found[:, better].astype(np.uint8)
    return Columns(levels, vectors != 0, scales)


def band(shape: tuple[int, ...], above: Columns, below: Columns, values: Doubles, bits: int) -> Compressed:
    """Returns a band as it is stored: left vectors above right ones, and a weight for each pair.

    shape: of the matrix. above: left vectors, (row, k). below: right ones, (column, k). values: their
    singular values; those and the scales make one weight of four digits.
    """
    weights = [float(f"{weight:.{_DIGITS}g}") for weight in values * above.scales * below.scales]
    levels, kept = np.concatenate([above.levels, below.levels]), np.concatenate([above.kept, below.kept])
    mask = np.packbits(kept, bitorder="little")
    return Compressed(
        assemble(levels.shape, [mask], [levels[kept]], bits), 1.0, shape=shape, weights=tuple(weights)
    )


def sum_of_bands(bands: Sequence[Compressed]) -> Compressed:
    """Returns the sum of one or more bands."""
    return replace(bands[0], more=tuple(bands[1:]))
