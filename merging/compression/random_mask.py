"""Which entries of a delta a random draw keeps: the same on any machine, in blocks of any size.

Source: methods, §6.4, the rule of seeds.
"""

import hashlib
import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.compression.delta import Delta

Marks = NDArray[np.bool_]


def drawn_blocks(delta: Delta, drop: float, seed: int) -> Iterator[tuple[FloatArray, Marks]]:
    """Yields each block of a delta and which of its entries are drawn, each with the chance 1 − drop.

    Every entry has a number of 64 bits of its own, in flat order, from a PCG64 that the SHA-256 of seed,
    task and name starts: one below (1 − drop) · 2^64 draws it. drop: in [0, 1), read as a decimal.
    """
    key = hashlib.sha256(f"{seed}\0{delta.task}\0{delta.name}".encode()).digest()
    generator = np.random.PCG64(int.from_bytes(key, "little"))
    last = np.uint64(math.ceil((1 - Fraction(str(drop))) * (1 << 64)) - 1)
    for block in delta.read():
        yield block, generator.random_raw(len(block)) <= last
