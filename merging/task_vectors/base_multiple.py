"""Multiples of the base's weights, as weight decay adds them to a task vector. Source: docs/methods.md §4."""

from collections.abc import Iterator

import numpy as np
import torch

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.task_vectors.task_vector import block_ranges


def multiple_blocks(
    base: Checkpoint, name: str, factor: float, size: int | None = None
) -> Iterator[FloatArray]:
    """Yields a float32 factor times a tensor of the base, in float32, as flat blocks of `size` entries."""
    for start, stop in block_ranges(base.tensors[name].entries, size):
        yield base.read(name, start, stop).to(torch.float32).numpy() * np.float32(factor)
