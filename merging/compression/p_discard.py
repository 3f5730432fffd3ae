"""P-Discard: the mask of T-Switch with the real values kept; without dropping, all that changed.

Source: Qi et al. 2025 (arXiv 2412.00054), the paper's control; docs/methods.md §2.
"""

from typing import Annotated

import numpy as np
from pydantic import Field

from flexswitch.codecs.sums import square_sum
from flexswitch.merging.compression.delta import Compressed, Delta, Squares, assemble
from flexswitch.merging.compression.magnitude import kept_blocks


def p_discard(
    delta: Delta,
    *,
    drop: Annotated[float, Field(ge=0, lt=1, description="Share of each sign's entries to drop.")] = 0.6,
) -> Compressed:
    """Returns the largest entries of both signs as float32."""
    masks, patterns, total, lost = [], [], 0.0, 0.0
    for mask, values, dropped in kept_blocks(delta.read, drop, delta.sample):
        masks.append(mask)
        patterns.append(values.view(np.uint32))
        total += square_sum(values)
        lost += dropped
    sparse = assemble(delta.shape, masks, patterns, bits=32)
    return Compressed(sparse, 1.0, squares=Squares(lost, lost + total))
