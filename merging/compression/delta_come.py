"""Delta-CoMe: the singular vectors of each matrix's delta, the leading ones in more bits.

The paper quantises by GPTQ with calibration texts; here each vector has the scale of least squared error.
Source: Ping et al. 2024, "Delta-CoMe: Training-Free Delta-Compression with Mixed-Precision for Large Language
Models" (arXiv 2406.08903), section 4; docs/methods.md §6.25.
"""

import math
from dataclasses import replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from flexswitch.merging.compression.delta import Compressed, Delta, assemble
from flexswitch.merging.compression.low_rank import Others, delta_triples, kept_or_left_out, left_out

Doubles = NDArray[np.float64]

_WEIGHT_BITS = 32  # of a singular value times its vectors' scales
_OTHER_BITS = 16
_WIDTHS = (8, 3, 2)
_SCALES = np.arange(20, 3, -1) / 20  # of a vector, over its largest magnitude
_DIGITS = 4


def delta_come(
    delta: Delta,
    *,
    entry_bits: Annotated[
        float, Field(gt=0, le=8, description="Bits of all singular vectors of a matrix, per entry of it.")
    ] = 1.0,
    rank_8: Annotated[int, Field(ge=0, description="Leading vectors in 8 bits.")] = 2,
    rank_3: Annotated[
        int, Field(ge=0, description="Vectors after them in 3 bits; further ones take 2 bits.")
    ] = 32,
    others: Others = "keep",
) -> Compressed:
    """Returns the leading singular vectors in 8, 3 and 2 bits, as many as entry_bits allows.

    The levels of b bits are evenly spaced and none is zero. Singular values and scales make one weight for
    each pair of vectors, of four digits. Tensors that are no matrices are kept as bfloat16.

    Raises: InputError if a value is not finite in bfloat16.
    """
    if len(delta.shape) != 2:
        return kept_or_left_out(delta, others, _OTHER_BITS)
    ranks = band_ranks(delta.shape, entry_bits, (rank_8, rank_3))
    if not sum(ranks):
        return left_out(delta)
    triples = delta_triples(delta, sum(ranks))
    left, right = triples.left.numpy(), triples.right.numpy().T
    parts, start = [], 0
    for width, rank in zip(_WIDTHS, ranks, strict=True):
        band, start = slice(start, start + rank), start + rank
        if len(values := triples.values[band].numpy()):
            parts.append(_band(delta.shape, left[:, band], values, right[:, band], width))
    return replace(parts[0], more=tuple(parts[1:])) if parts else left_out(delta)


def band_ranks(shape: tuple[int, ...], entry_bits: float, most: tuple[int, int]) -> tuple[int, int, int]:
    """Returns how many vectors take 8, 3 and 2 bits; most: the most that take 8 and 3."""
    rows, columns = shape
    left, free, ranks = math.floor(entry_bits * rows * columns), min(rows, columns), []
    for width, limit in zip(_WIDTHS, (*most, free), strict=True):
        cost = (rows + columns) * width + _WEIGHT_BITS
        ranks.append(min(limit, free, left // cost))
        left, free = left - ranks[-1] * cost, free - ranks[-1]
    return ranks[0], ranks[1], ranks[2]


def _band(shape: tuple[int, ...], left: Doubles, values: Doubles, right: Doubles, bits: int) -> Compressed:
    """Returns left, (row, k), and right, (column, k), quantised one above the other."""
    (above, above_scales), (below, below_scales) = (quantised(vectors, bits) for vectors in (left, right))
    weights = [float(f"{weight:.{_DIGITS}g}") for weight in values * above_scales * below_scales]
    levels, kept = np.concatenate([above, below]), np.concatenate([left, right]) != 0
    mask = np.packbits(kept, bitorder="little")
    return Compressed(
        assemble(levels.shape, [mask], [levels[kept]], bits), 1.0, shape=shape, weights=tuple(weights)
    )


def quantised(vectors: Doubles, bits: int) -> tuple[NDArray[np.uint8], Doubles]:
    """Returns the levels of columns, (n, k), and their scales, (k,): of those tried the one of least error.

    The scales tried are the largest magnitude times 1, 0.95, ..., 0.2; entries that are 0 do not count.
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
    return levels, scales
