"""T-Switch and P-Discard against docs/methods.md §2."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from support import laws
from support.checkpoints import (
    memory_pair,
    message,
)
from support.deltas import TINY, Floats, delta, dense, normal
from support.plain_methods import reference_mask, reference_scale

from flexswitch.codecs.errors import UsageError
from flexswitch.codecs.order_statistics import kept_count
from flexswitch.merging.compression.compress import compress
from flexswitch.merging.compression.delta import Compressed
from flexswitch.merging.methods.registry import get_method
from flexswitch.merging.task_vectors.task_vector import delta_tensor

DROPS = ["0", "0.4", "0.6", "0.7", "0.93", "0.97"]


def run(method: str, values: Floats, drop: str, block: int = 1 << 20) -> Compressed:
    before = values.copy()
    found: Compressed = get_method(method, "compression").load()(delta(values, block), drop=float(drop))
    np.testing.assert_array_equal(values, before)
    return found


def check(values: Floats, drop: str, block: int = 1 << 20) -> None:
    """Checks mask, signs, values and scale of both methods."""
    flat, kept = values.reshape(-1), reference_mask(values, drop)
    mask = np.packbits(kept, bitorder="little")
    switch, discard = run("t-switch", values, drop, block), run("p-discard", values, drop, block)
    for found in (switch, discard):
        assert found.sparse.shape == values.shape
        np.testing.assert_array_equal(found.sparse.mask, mask)
    assert switch.sparse.bits == 1
    np.testing.assert_array_equal(switch.sparse.levels, (flat[kept] > 0).astype(np.uint8))
    assert switch.scale == reference_scale(flat[kept])
    assert (discard.sparse.bits, discard.scale) == (32, 1)
    np.testing.assert_array_equal(discard.sparse.levels, flat[kept].view(np.uint32))
    signs = np.where(kept, np.sign(flat), 0).astype(np.float32)
    np.testing.assert_array_equal(dense(switch), np.float32(switch.scale) * signs)
    np.testing.assert_array_equal(dense(discard), np.where(kept, flat, np.float32(0)))


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("shape", [(1,), (3,), (7, 11), (1, 1, 1), (2, 3, 5, 7), (100,), (64, 8), (0, 4)])
def test_any_shape_agrees_with_the_text(shape: tuple[int, ...], drop: str) -> None:
    check(normal(shape, seed=len(drop)), drop)


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_deltas_of_any_dtype_agree_with_the_text(drop: str, dtype: torch.dtype) -> None:
    base = torch.from_numpy(normal((37, 29))).to(dtype)
    finetuned = base + torch.from_numpy(normal((37, 29), seed=1) * 0.01).to(dtype)
    delta = delta_tensor(memory_pair({"w": base}, {"w": finetuned}), "w").numpy()
    assert len(np.unique(delta)) < delta.size or dtype == torch.float32  # ties and zeros, from rounding
    check(delta, drop)


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize(
    "values",
    [
        [0.0] * 9,
        [-0.0] * 9,
        [2.0, 1.0, 3.0, 0.0, 5.0, 4.0],
        [-2.0, -1.0, -3.0, -0.0, -5.0, -4.0],
        [1.0] * 20 + [-1.0] * 7,
        [1.0] * 10 + [2.0] + [-3.0, 0.0, -0.0],
        [TINY, 2 * TINY, -TINY, 3 * TINY, 0.0],
        [1e-39, -1e-39, 1.1754944e-38, -1.1754944e-38, 3e38, -3e38, 1.0],
        [1.0, 1.0000001, 1.0000002, 1.0000004, -1.0, -1.0000001],
    ],
)
def test_ties_zeros_one_sided_and_extreme_deltas_agree_with_the_text(values: list[float], drop: str) -> None:
    check(np.array(values, np.float32), drop)


FEW_VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0000001, 0.5, -0.5, TINY, -TINY, 1e-38, 3e38, -3e38])
ANY_FLOAT = st.floats(width=32, allow_nan=False, allow_infinity=False)


@laws.settings(100, deadline=None)
@given(
    st.one_of(
        arrays(np.float32, array_shapes(max_dims=3, max_side=9), elements=elements, fill=st.nothing())
        for elements in (FEW_VALUES, ANY_FLOAT)
    ),
    st.sampled_from(DROPS) | st.decimals(0, "0.999", places=3).map(str),
    st.sampled_from([8, 16, 1 << 20]),
)
@example(np.array([3e38, -3e38, TINY], np.float32), "0", 8)
def test_any_array_agrees_with_the_text(values: Floats, drop: str, block: int) -> None:
    check(values, drop, block)


@pytest.mark.parametrize("block", [8, 24, 64])
def test_the_borders_of_blocks_change_nothing(block: int) -> None:
    values = np.round(normal((13, 17)), 1)  # ties on both sides of borders
    for drop in DROPS:
        check(values, drop, block)


@pytest.mark.parametrize(
    ("drop", "count", "kept"),
    [("0.93", 100, 7), ("0.97", 100, 3), ("0.97", 300, 9), ("0.9", 10, 1), ("0.7", 10, 3), ("0.6", 5, 2),
     ("0", 7, 7), ("0.99", 99, 0), ("1e-05", 100_000, 99_999)],
)  # fmt: skip
def test_a_drop_rate_is_read_as_a_decimal(drop: str, count: int, kept: int) -> None:
    assert kept_count(float(drop), count) == kept
    values = np.arange(1, min(count, 300) + 1, dtype=np.float32)
    if count <= 300:
        assert int(reference_mask(values, drop).sum()) == kept
        assert len(run("t-switch", values, drop).sparse.levels) == kept
        assert len(run("t-switch", -values, drop).sparse.levels) == kept


def test_each_sign_keeps_its_own_largest() -> None:
    values = np.array([9.0, 8.0, 7.0, 6.0, 0.0, -0.1, -0.2, -0.3, -0.4], np.float32)
    found = run("t-switch", values, "0.5")
    expected = np.sqrt(np.float64(9**2 + 8**2 + np.float64(values[7]) ** 2 + np.float64(values[8]) ** 2) / 4)
    assert found.scale == np.float32(expected)
    assert dense(found).tolist() == [found.scale, found.scale, 0, 0, 0, 0, 0, -found.scale, -found.scale]


def test_a_side_too_small_to_keep_anything_keeps_nothing() -> None:
    values = np.array([5.0, -1.0, -2.0, -3.0, -4.0], np.float32)
    assert dense(run("p-discard", values, "0.6")).tolist() == [0, 0, 0, 0, -4]


def test_all_entries_that_equal_the_threshold_are_kept() -> None:
    values = np.array([3.0, 2.0, 2.0, 2.0, 1.0], np.float32)
    assert dense(run("p-discard", values, "0.6")).tolist() == [3, 2, 2, 2, 0]


def test_a_binarised_delta_has_the_norm_of_what_was_kept() -> None:
    values = normal((40, 25))
    switch, discard = dense(run("t-switch", values, "0.6")), dense(run("p-discard", values, "0.6"))
    np.testing.assert_allclose(np.linalg.norm(switch), np.linalg.norm(discard), rtol=1e-6)


@pytest.mark.parametrize("method", ["t-switch", "p-discard", "bin-discard", "dare"])
@pytest.mark.parametrize("drop", [1.0, -0.1, 1.5])
def test_a_drop_rate_outside_its_range_is_refused(tmp_path: Path, method: str, drop: float) -> None:
    path = tmp_path / "t.fsw"
    pair = memory_pair({"w": torch.zeros(3)}, {"w": torch.ones(3)})
    found = message(UsageError, lambda: compress(pair, path, "t", method, {"drop": drop}, False))
    assert found == f"setting drop={drop} of {method}: expected a number of at least 0 and below 1"
    assert not path.exists()
