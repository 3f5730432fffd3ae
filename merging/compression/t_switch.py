"""T-Switch: the largest entries of both signs, binarised, under one scale a tensor.

Source: Qi et al. 2025, "Less is More: Efficient Model Merging with Binary Task Switch"
(arXiv 2412.00054), task switch; docs/methods.md §2.
"""

import math
from collections.abc import Iterable
from typing import Annotated

import numpy as np
from pydantic import Field

from flexswitch.codecs.sums import magnitude_sum, square_sum
from flexswitch.merging.compression.delta import Compressed, Delta, Squares, assemble
from flexswitch.merging.compression.magnitude import KeptBlock, kept_blocks


def t_switch(
    delta: Delta,
    *,
    drop: Annotated[float, Field(ge=0, lt=1, description="Share of each sign's entries to drop.")] = 0.6,
) -> Compressed:
    """Returns the activation switch (mask), the polarity switch (signs) and the switch knob (scale).

    The scale is ‖kept‖₂ / √(number kept), so the binarised tensor has the kept values' norm.
    """
    return binarised(delta.shape, kept_blocks(delta.read, drop, delta.sample))


def binarised(shape: tuple[int, ...], blocks: Iterable[KeptBlock]) -> Compressed:
    """Returns the signs of kept entries under the switch knob."""
    masks, signs, total, kept, magnitudes, lost = [], [], 0.0, 0, 0.0, 0.0
    for mask, values, dropped in blocks:
        masks.append(mask)
        signs.append((values > 0).view(np.uint8))
        total += square_sum(values)
        kept += len(values)
        magnitudes += magnitude_sum(values)
        lost += dropped
    scale = float(np.float32(math.sqrt(total / kept) if kept else 0.0))
    rounded = max(0.0, total - 2 * scale * magnitudes + kept * scale**2)  # Σ (|τ| − scale)² of the kept
    squares = Squares(lost + rounded, lost + total)
    return Compressed(assemble(shape, masks, signs, bits=1), scale, squares=squares)
