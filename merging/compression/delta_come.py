"""Delta-CoMe: the singular vectors of each matrix's delta, the leading ones in more bits.

The paper quantises by GPTQ with calibration texts; here each vector has the scale of least squared error.
Source: Ping et al. 2024, "Delta-CoMe: Training-Free Delta-Compression with Mixed-Precision for Large Language
Models" (arXiv 2406.08903), section 4; docs/methods.md §6.25.
"""

import math
from typing import Annotated

from pydantic import Field

from flexswitch.merging.compression.delta import Compressed, Delta
from flexswitch.merging.compression.low_rank import Others, delta_triples, kept_or_left_out, left_out
from flexswitch.merging.compression.singular_bands import WEIGHT_BITS, band, quantised, sum_of_bands

_OTHER_BITS = 16
_WIDTHS = (8, 3, 2)


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
        taken, start = slice(start, start + rank), start + rank
        if len(values := triples.values[taken].numpy()):
            above, below = (quantised(vectors[:, taken], width) for vectors in (left, right))
            parts.append(band(delta.shape, above, below, values, width))
    return sum_of_bands(parts) if parts else left_out(delta)


def band_ranks(shape: tuple[int, ...], entry_bits: float, most: tuple[int, int]) -> tuple[int, int, int]:
    """Returns how many vectors take 8, 3 and 2 bits; most: the most that take 8 and 3."""
    rows, columns = shape
    left, free, ranks = math.floor(entry_bits * rows * columns), min(rows, columns), []
    for width, limit in zip(_WIDTHS, (*most, free), strict=True):
        cost = (rows + columns) * width + WEIGHT_BITS
        ranks.append(min(limit, free, left // cost))
        left, free = left - ranks[-1] * cost, free - ranks[-1]
    return ranks[0], ranks[1], ranks[2]
