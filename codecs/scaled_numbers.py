"""Numbers times a factor near one, in integers: what weight decay alone would have made of the base's.

AdamW multiplies every weight by the same factor in each step, also those that no gradient reaches
(I. Loshchilov, F. Hutter 2019, "Decoupled Weight Decay Regularization", arXiv 1711.05101, algorithm 2).
"""

import numpy as np

from flexswitch.codecs.compiled import compiled, read_only
from flexswitch.codecs.residual_model import Numbers, int64

FACTOR_BITS = 24
LARGEST_FACTOR = 1 << (FACTOR_BITS - 1)  # of either sign: factors lie between a half and one and a half
MOST_MANTISSA = 23  # bits of a number that may be multiplied
_SAMPLE = 1 << 16


def scaled(base: Numbers, factor: int, width: int, mantissa: int) -> Numbers:
    """Returns floating numbers times 1 + factor / 2^24, rounded to nearest, halves away from zero.

    base: (entry,), bit patterns. Numbers without a leading one or a finite value, and those whose product
    has none, stay as they are.
    """
    if not factor:
        return read_only(base)
    out = np.empty_like(base)
    _scale(read_only(base), out, width, mantissa, (1 << FACTOR_BITS) + factor)
    return read_only(out)


def decay_factor(base: Numbers, found: Numbers, width: int, mantissa: int) -> int:
    """Returns the factor by which most numbers moved; 0 if they come no nearer to the found ones by it.

    base, found: (entry,), bit patterns. At most 65,536 entries, evenly spaced, decide.
    """
    if not 0 < mantissa <= MOST_MANTISSA:
        return 0
    step = -(-base.size // _SAMPLE)
    before, after = (each[::step].astype(np.int64) for each in (base, found))
    size, top = (1 << (width - 1)) - 1, (1 << (width - 1)) - (1 << mantissa)
    normal = [(each & size >= 1 << mantissa) & (each & size < top) for each in (before, after)]
    alike = normal[0] & normal[1] & (((before ^ after) >> (width - 1)) == 0)
    if not alike.any():
        return 0
    before, after = before[alike] & size, after[alike] & size
    ratio = float(np.median(_values(after, mantissa) / _values(before, mantissa)))
    factor = round((ratio - 1) * (1 << FACTOR_BITS)) if abs(ratio - 1) < 0.5 else 0
    if not factor:
        return 0
    near = scaled(before.astype(base.dtype), factor, width, mantissa).astype(np.int64)
    return factor if _bits(near, after) < _bits(before, after) else 0


def _values(magnitudes: Numbers, mantissa: int) -> Numbers:
    """Returns magnitudes as float64, times a power of two that is the same for all of a dtype."""
    digits = (magnitudes & ((1 << mantissa) - 1)) + (1 << mantissa)
    exponents = (magnitudes >> mantissa).astype(np.int32)
    return np.ldexp(digits.astype(np.float64), exponents - (1 << 7))


def _bits(before: Numbers, after: Numbers) -> float:
    """Returns about how many bits the distances take."""
    return float(np.log2(1.0 + np.abs(after - before)).sum())


@compiled
def _scale(base: Numbers, out: Numbers, width: int, mantissa: int, factor: int) -> None:
    size, one = (int64(1) << (width - 1)) - 1, int64(1) << mantissa
    top = size - (one - 1)  # the smallest pattern without a finite value
    for index in range(base.size):
        pattern = int64(base[index])
        before = pattern & size
        product = ((pattern & (one - 1)) | one) * factor  # in units of 2^-24 of the last place
        moved = int64(product >= one << (FACTOR_BITS + 1)) - int64(product < one << FACTOR_BITS)
        half = int64(1) << (FACTOR_BITS + moved - 1)
        digits = (product + half) >> (FACTOR_BITS + moved)
        after = (((before >> mantissa) + moved) << mantissa) + digits - one
        if one <= before < top and one <= after < top:
            pattern = pattern - before + after
        out[index] = pattern
