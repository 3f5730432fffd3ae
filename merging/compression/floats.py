"""Values stored as floating-point numbers, float32 or bfloat16."""

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.compression.delta import Compressed, Delta, assemble

FLOAT_BITS = 32
_INFINITY = 0x7F80_0000  # the bit pattern of the float32


def floats(delta: Delta, bits: int) -> Compressed:
    """Returns all values that are not zero, float32 or bfloat16. Raises: InputError if one is not finite."""
    masks, levels = [], []
    for block in delta.read():
        patterns, magnitudes = float_patterns(block, bits)
        kept = magnitudes != 0
        if are_infinite(magnitudes, bits).any():
            raise InputError(f"tensor '{delta.name}': a value to be stored is not finite in {bits} bits")
        masks.append(np.packbits(kept, bitorder="little"))
        levels.append(patterns[kept])
    return Compressed(assemble(delta.shape, masks, levels, bits), 1.0)


def float_patterns(values: FloatArray, bits: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Returns the bit patterns of values in 32 bits, or rounded to bfloat16 in 16, and those without sign."""
    patterns = values.view(np.uint32) if bits == FLOAT_BITS else _bfloat_patterns(values)
    return patterns, patterns & np.uint32((1 << (bits - 1)) - 1)


def are_infinite(magnitudes: NDArray[np.uint32], bits: int) -> NDArray[np.bool_]:
    """Returns which patterns without sign are those of an infinity or NaN."""
    found: NDArray[np.bool_] = magnitudes >= _INFINITY >> (FLOAT_BITS - bits)
    return found


def _bfloat_patterns(values: FloatArray) -> NDArray[np.uint32]:
    """Returns the bit patterns of the bfloat16 values nearest to finite ones, the even one of two as near."""
    patterns = values.view(np.uint32)
    half = np.uint32(0x7FFF) + ((patterns >> np.uint32(16)) & np.uint32(1))
    return (patterns + half) >> np.uint32(16)
