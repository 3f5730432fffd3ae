"""DARE: entries dropped by chance, what is left scaled up so that the expected value stays.

Source: Yu et al. 2024, "Language Models are Super Mario" (arXiv 2311.03099); docs/methods.md §6.4.
"""

from fractions import Fraction
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from flexswitch.codecs.errors import InputError
from flexswitch.merging.compression.delta import Compressed, Delta, assemble
from flexswitch.merging.compression.floats import are_infinite, float_patterns
from flexswitch.merging.compression.random_mask import drawn_blocks


def dare(
    delta: Delta,
    *,
    drop: Annotated[float, Field(ge=0, lt=1, description="Probability that an entry is dropped.")] = 0.9,
    bits: Annotated[Literal[16, 32], Field(description="Bits of a value: bfloat16 or float32.")] = 32,
    seed: Annotated[int, Field(description="Seed of the mask, with the task's and tensor's names.")] = 0,
) -> Compressed:
    """Returns randomly kept entries, each times 1 / (1 − drop), as floating-point values; zeros are left out.

    Raises: InputError where a rescaled value is not finite.
    """
    share = float(1 - Fraction(str(drop)))
    masks, levels = [], []
    for block, drawn in drawn_blocks(delta, drop, seed):
        with np.errstate(over="ignore"):
            values = (block.astype(np.float64) / share).astype(np.float32)
        patterns, magnitudes = float_patterns(values, bits)
        kept = drawn & (magnitudes != 0)  # rounding to bfloat16 may have made a zero
        if are_infinite(magnitudes[kept], bits).any():
            raise InputError(f"tensor '{delta.name}' divided by {share:g} is infinite in {bits} bits")
        masks.append(np.packbits(kept, bitorder="little"))
        levels.append(patterns[kept])
    return Compressed(assemble(delta.shape, masks, levels, bits), 1.0)
