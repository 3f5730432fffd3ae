"""Draws the entries of a delta that are kept: the same on any machine, whatever the size of the blocks.

Source: docs/methods.md §6.4.
"""

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.draws import seeded_generator
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.compression.delta import Delta

Marks = NDArray[np.bool_]


def drawn_blocks(delta: Delta, drop: float, seed: int) -> Iterator[tuple[FloatArray, Marks]]:
    """Yields each block of a delta and which of its entries are drawn, each with probability 1 − drop.

    Each entry, in flat order, gets one 64-bit number of a PCG64 generator whose seed is the SHA-256 of seed,
    task and name; it is drawn if that number is below (1 − drop) · 2^64. drop: a decimal in [0, 1).
    """
    generator = seeded_generator(seed, delta.task, delta.name)
    last = np.uint64(math.ceil((1 - Fraction(str(drop))) * (1 << 64)) - 1)
    for block in delta.read():
        yield block, generator.random_raw(len(block)) <= last
