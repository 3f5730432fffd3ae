"""Small deltas, and the result of compressing them, for the tests of the methods."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from flexswitch.merging.compression.delta import Compressed, Delta

Floats = NDArray[np.float32]

TINY = float(np.float32(1e-45))
FEW_VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0000001, 0.5, -0.5, TINY, -TINY, 1e-38, 3e36, -3e36])
ANY_FLOAT = st.floats(-(2.0**120), 2.0**120, width=32)
DELTAS = st.one_of(
    arrays(np.float32, array_shapes(max_dims=3, max_side=9), elements=elements, fill=st.nothing())
    for elements in (FEW_VALUES, ANY_FLOAT)
)
BLOCKS = st.sampled_from([8, 24, 1 << 20])


def normal(shape: tuple[int, ...], seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def delta(values: Floats, block: int = 1 << 20, name: str = "w", task: str = "task") -> Delta:
    """Returns a tensor's delta in blocks of so many entries."""
    flat = values.reshape(-1)
    blocks = [flat[start : start + block] for start in range(0, len(flat), block)]
    return Delta(name, values.shape, lambda: blocks, task)


def dense(found: Compressed) -> Floats:
    """Returns what a compressed tensor decodes to, flat."""
    return found.values()


def marked(found: Compressed) -> NDArray[np.bool_]:
    """Returns which entries are kept, flat."""
    bits = np.unpackbits(found.sparse.mask, count=found.sparse.layout.entries, bitorder="little")
    return bits.view(np.bool_)
