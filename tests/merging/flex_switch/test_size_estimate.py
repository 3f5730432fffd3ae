"""The size estimate, against what is stored at other thresholds."""

import math

import numpy as np
import pytest
import torch
from support.checkpoints import job, memory_pair
from support.deltas import normal

from flexswitch.codecs.threads import parallel_map
from flexswitch.merging.flex_switch.compression_task import read_compression_task
from flexswitch.merging.flex_switch.delta_rows import Quantisation
from flexswitch.merging.flex_switch.fit_to_size import scaled
from flexswitch.merging.flex_switch.size_estimate import size_estimate


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("by_rows", [False, True])
def test_sizes_change_as_estimated(bits: int, by_rows: bool) -> None:
    base = {"w": torch.zeros(96, 80), "v": torch.zeros(64, 120)}
    tuned = {name: torch.from_numpy(normal(tuple(value.shape))) for name, value in base.items()}
    with parallel_map(1) as each:
        vector = memory_pair(base, tuned)
        task = read_compression_task(vector, job().header(vector), np.array([1, 2, 4]), "small", each)
        spread = np.random.default_rng(0).uniform(0.95, 1.05, 96) if by_rows else np.ones(96)
        kept = [
            Quantisation((tensor.rms * spread[: len(tensor.rows)]).astype(np.float32), bits, 2 * tensor.rms)
            for tensor in task.tensors
        ]
        ahead, packer = size_estimate(task.tensors, task.tables, kept), task.sizer()
        least = packer.empty_size()
        for shift in (-0.3, -0.1, 0.1):
            found = (packer.size(scaled(kept, shift)) - least) / (packer.size(kept) - least)
            assert ahead(shift) / ahead(0) == pytest.approx(found, rel=0.06 if bits == 1 else 0.12)


def test_an_estimate_never_falls_as_more_is_kept_and_ends_at_nothing() -> None:
    tuned = {"w": torch.from_numpy(normal((96, 80))), "v": torch.from_numpy(normal((5,)))}
    base = {name: torch.zeros_like(value) for name, value in tuned.items()}
    with parallel_map(1) as each:
        vector = memory_pair(base, tuned)
        task = read_compression_task(vector, job().header(vector), np.array([1, 2]), "small", each)
    kept = [Quantisation(np.full(len(tensor.rows), np.float32(1)), 1, 1.0) for tensor in task.tensors]
    shifts = np.linspace(-20, 20, 500)
    found = [size_estimate(task.tensors, task.tables, kept)(shift) for shift in shifts]
    assert (np.diff(found) <= 0).all()
    most = 1.585 * (96 * 80 + 5)  # log2(3) bits an entry, a sign and a mask of two in three
    assert found[0] == pytest.approx(most, rel=0.1)
    assert found[-1] == 0
    nothing = [
        Quantisation(np.full(len(tensor.rows), np.float32(math.inf)), 1, 1.0) for tensor in task.tensors
    ]
    assert size_estimate(task.tensors, task.tables, nothing)(-20) == 0
