"""DARE: entries dropped by chance, what is left scaled up so that the expected value stays.

Source: Yu et al. 2024, "Language Models are Super Mario" (arXiv 2311.03099); methods, §6.4.
"""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.compression.delta import Compressed, Delta, assemble
from flexswitch.merging.compression.magnitude import check_drop
from flexswitch.merging.compression.random_mask import drawn_blocks

_BFLOAT_BITS, _FLOAT_BITS = 16, 32
_INFINITY = 0x7F80_0000  # the bit pattern of the float32


def dare(delta: Delta, *, drop: float = 0.9, bits: int = 32, seed: int = 0) -> Compressed:
    """Returns entries kept by chance, each times 1 / (1 − drop), as floating values; zeros are left out.

    drop: the chance of each entry, drawn by itself, to be dropped, in [0, 1). bits: 32 for float32 values,
    or 16 for bfloat16. seed: what is drawn follows from it, the task and the tensor's name.
    Raises: UsageError on a setting outside its range; InputError where a rescaled value is not finite.
    """
    check_drop(drop)
    if bits not in (_BFLOAT_BITS, _FLOAT_BITS):
        raise UsageError(f"bits={bits}: expected {_BFLOAT_BITS} or {_FLOAT_BITS}")
    share = float(1 - Fraction(str(drop)))
    masks, levels = [], []
    for block, drawn in drawn_blocks(delta, drop, seed):
        with np.errstate(over="ignore"):
            values = (block.astype(np.float64) / share).astype(np.float32)
        patterns = values.view(np.uint32) if bits == _FLOAT_BITS else bfloat_patterns(values)
        magnitudes = patterns & np.uint32((1 << (bits - 1)) - 1)
        kept = drawn & (magnitudes != 0)  # rounding to bfloat16 may have made a zero
        if (magnitudes[kept] >= _INFINITY >> (_FLOAT_BITS - bits)).any():
            raise InputError(f"tensor '{delta.name}' divided by {share:g} is infinite in {bits} bits")
        masks.append(np.packbits(kept, bitorder="little"))
        levels.append(patterns[kept])
    return Compressed(assemble(delta.shape, masks, levels, bits), 1.0)


def bfloat_patterns(values: FloatArray) -> NDArray[np.uint32]:
    """Returns the bit patterns of the bfloat16 values nearest to finite ones, the even one of two as near."""
    patterns = values.view(np.uint32)
    half = np.uint32(0x7FFF) + ((patterns >> np.uint32(16)) & np.uint32(1))
    return (patterns + half) >> np.uint32(16)
