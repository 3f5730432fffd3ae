"""Stores shared values as floating-point numbers or levels, and masks of their entries."""

from collections.abc import Callable
from functools import partial as bind

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.compression.delta import Compressed, Delta, assemble
from flexswitch.merging.compression.floats import floats
from flexswitch.merging.compression.tvq import tvq
from flexswitch.merging.task_vectors.task_vector import TaskVector

Keep = Callable[[FloatArray, FloatArray], NDArray[np.bool_]]


def stored_in(bits: int) -> Callable[[Delta], Compressed]:
    """Returns how a tensor is stored in so many bits: as TVQ does up to 8, bfloat16 or float32."""
    return bind(tvq, bits=bits) if bits <= 8 else bind(floats, bits=bits)


def masked(delta: Delta, shared: TaskVector, keep: Keep, scale: float) -> Compressed:
    """Returns the mask of the entries that a task takes from the shared vector, times a scale.

    keep: (τ, shared values) → which entries are taken. Those that are zero are left out.
    """
    masks, count = [], 0
    if delta.name in shared.tensors:
        for block, values in zip(delta.read(), shared.blocks(delta.name), strict=True):
            kept = keep(block, values) & (values != 0)
            masks.append(np.packbits(kept, bitorder="little"))
            count += int(np.count_nonzero(kept))
    else:
        masks = [np.zeros(-(-len(block) // 8), np.uint8) for block in delta.read()]
    return Compressed(assemble(delta.shape, masks, [np.zeros(count, np.uint8)], 0), scale)
