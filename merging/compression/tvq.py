"""TVQ: every entry in the nearest of 2^bits evenly spaced levels, zero among them.

RTVQ, which is TVQ twice, is a method of tasks that share a vector.
Source: Kim et al. 2025, "Task Vector Quantization for Memory-Efficient Model Merging" (arXiv 2503.06921);
docs/methods.md §6.17.
"""

from typing import Annotated

import numpy as np
from pydantic import Field

from flexswitch.merging.compression.delta import Compressed, Delta, assemble

_LARGEST = float(np.finfo(np.float32).max)


def tvq(
    delta: Delta, *, bits: Annotated[int, Field(ge=1, le=8, description="Bits of a level.")] = 2
) -> Compressed:
    """Returns asymmetric uniform levels; entries at the zero point are zero and not kept.

    With D = (max τ − min τ) / (2^bits − 1) and z = −round(min τ / D), halves to the even number, the level
    is q = clamp(round(τ / D) + z, 0, 2^bits − 1) and its value D · (q − z). Where all entries are the same
    value, D is its magnitude, and one level is the value itself.
    """
    extremes = [float(bound) for block in delta.read() for bound in (block.min(), block.max())]
    low, high, top = min(extremes, default=0.0), max(extremes, default=0.0), (1 << bits) - 1
    step = _float32_from((high - low) / top or abs(low)) or 1.0
    zero = -int(np.rint(low / step)) if low < high else int(low < 0)
    masks, levels = [], []
    for block in delta.read():
        steps = np.rint(block.astype(np.float64) / step)
        quantised = np.clip(steps + zero, 0, top)
        kept = quantised != zero
        masks.append(np.packbits(kept, bitorder="little"))
        levels.append(quantised[kept].astype(np.uint8))
    return Compressed(assemble(delta.shape, masks, levels, bits), step, zero)


def _float32_from(step: float) -> float:
    """Returns the least float32 that is no smaller: with it the levels reach from end to end."""
    if step >= _LARGEST:
        return _LARGEST
    rounded = np.float32(step)
    return float(rounded if float(rounded) >= step else np.nextafter(rounded, np.float32(np.inf)))
