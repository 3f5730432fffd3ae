"""Bin-Discard: discarded entries as in the real-valued controls, and the signs of the others.

Source: Qi et al. 2025 (arXiv 2412.00054), the paper's controls; docs/methods.md §2 and §6.4.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from flexswitch.codecs.sums import unmarked_square_sum
from flexswitch.merging.compression.delta import Compressed, Delta
from flexswitch.merging.compression.magnitude import KeptBlock
from flexswitch.merging.compression.random_mask import drawn_blocks
from flexswitch.merging.compression.t_switch import binarised, t_switch


def bin_discard(
    delta: Delta,
    *,
    by: Annotated[
        Literal["magnitude", "random"],
        Field(description="Keep the largest entries, as p-discard does, or random ones, as dare does."),
    ] = "magnitude",
    drop: Annotated[float, Field(ge=0, lt=1, description="Share of the entries to drop.")] = 0.6,
    seed: Annotated[int, Field(description="Seed of the random mask.")] = 0,
) -> Compressed:
    """Returns the signs of what a control keeps, under the switch knob ‖kept‖₂ / √(number kept).

    With `magnitude` it is T-Switch. With `random` the kept values are not divided by 1 − drop first, so the
    expected value is 1 − drop of the delta's.
    """
    if by == "magnitude":
        return t_switch(delta, drop=drop)
    return binarised(delta.shape, _drawn(delta, drop, seed))


def _drawn(delta: Delta, drop: float, seed: int) -> Iterator[KeptBlock]:
    for block, drawn in drawn_blocks(delta, drop, seed):
        kept = drawn & (block != 0)
        mask = np.packbits(kept, bitorder="little")
        yield KeptBlock(mask, block[kept], unmarked_square_sum(block, kept))
