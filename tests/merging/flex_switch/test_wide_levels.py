"""Where the signs of all that changed would not fill a size, levels are widened until they do."""

import numpy as np
import pytest
import torch
from support.checkpoints import job, memory_pair
from support.deltas import normal

from flexswitch.codecs.threads import parallel_map
from flexswitch.merging.flex_switch.compression_task import CompressionTask, read_compression_task
from flexswitch.merging.flex_switch.delta_rows import Quantisation
from flexswitch.merging.flex_switch.fit_to_size import meets_target

BITS = np.array([1, 2, 4, 8])


def signs_of(task: CompressionTask) -> list[Quantisation]:
    """Returns the signs of the larger half of every tensor."""
    return [
        Quantisation(np.full(len(tensor.rows), np.median(np.abs(tensor.delta))), 1, tensor.rms)
        for tensor in task.tensors
    ]


@pytest.mark.parametrize(("target", "bits"), [(1_500, 1), (1_850, 1), (2_800, 2), (4_000, 4), (8_000, 8)])
def test_levels_are_as_wide_as_the_size_takes_and_no_wider(target: int, bits: int) -> None:
    base = {"w": torch.zeros(96, 80), "v": torch.zeros(64, 32)}  # 9,728 entries: 1,216 bytes a bit
    tuned = {name: torch.from_numpy(normal(tuple(tensor.shape))) for name, tensor in base.items()}
    with parallel_map(1) as each:
        vector = memory_pair(base, tuned)
        task = read_compression_task(vector, job().header(vector), BITS, "small", each)
        fitted, size = task.fill(signs_of(task), task.sizer(), target)
    assert [kept.bits for kept in fitted] == [bits, bits]
    assert meets_target(size, target)
    assert all(kept.scale > 0 for kept in fitted)
