"""Bin-Discard: discarded entries as in the real-valued controls, and the signs of the others.

Source: Qi et al. 2025 (arXiv 2412.00054), the paper's controls; methods, §2 and §6.4.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.compression.delta import Compressed, Delta
from flexswitch.merging.compression.magnitude import check_drop
from flexswitch.merging.compression.random_mask import drawn_blocks
from flexswitch.merging.compression.t_switch import binarised, t_switch


def bin_discard(
    delta: Delta, *, by: Literal["magnitude", "random"] = "magnitude", drop: float = 0.6, seed: int = 0
) -> Compressed:
    """Returns the signs of what a control keeps, under the switch knob ‖kept‖₂ / √(number kept).

    by: `magnitude` keeps what P-Discard does, and so is T-Switch by its other name; `random` keeps what
    DARE does with this drop rate and seed. The knob is that of T-Switch in both: of the values as they are,
    not divided by 1 − drop, so that a random mask gives 1 − drop of the expected value.
    Raises: UsageError on a drop rate outside its range.
    """
    if by == "magnitude":
        return t_switch(delta, drop=drop)
    check_drop(drop)
    return binarised(delta.shape, _drawn(delta, drop, seed))


def _drawn(delta: Delta, drop: float, seed: int) -> Iterator[tuple[NDArray[np.uint8], FloatArray]]:
    for block, drawn in drawn_blocks(delta, drop, seed):
        kept = drawn & (block != 0)
        yield np.packbits(kept, bitorder="little"), block[kept]
