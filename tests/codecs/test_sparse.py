"""Sparse tensors: the values that levels stand for, the counts of a mask, and what nobody may build."""

import re
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sparse_tensors import LAWS, positions, sparse_tensor, sparse_tensors

from flexswitch.codecs.sparse import (
    GROUP_SIZES,
    SparseLayout,
    SparseStats,
    SparseTensor,
    level_values,
    shannon_bits,
)

# Values


@pytest.mark.parametrize("bits", range(1, 9))
@LAWS
@given(scale=st.floats(0, 2.0**100, width=32))
def test_quantised_levels_stand_for_evenly_spaced_values(bits: int, scale: float) -> None:
    levels = np.arange(1 << bits, dtype=np.uint8)
    expected = [np.float32(scale * (2 * level + 1 - 2**bits) / (2**bits - 1)) for level in range(1 << bits)]
    found = level_values(levels, bits, scale)
    assert found.dtype == np.float32
    assert found.tolist() == [float(value) for value in expected]
    assert found[0] == -scale
    assert found[-1] == scale


@pytest.mark.parametrize("bits", range(1, 9))
@LAWS
@given(scale=st.floats(0, 2.0**90, width=32), zero=st.integers(1 - 2**32, 2**32 - 1))
def test_levels_with_a_zero_point_count_steps_from_it(bits: int, scale: float, zero: int) -> None:
    levels = np.arange(1 << bits, dtype=np.uint8)
    expected = [np.float32(scale * (level - zero)) for level in range(1 << bits)]
    assert level_values(levels, bits, scale, zero).tolist() == [float(value) for value in expected]


def test_a_value_beyond_float32_is_infinite() -> None:
    levels = np.arange(3, dtype=np.uint8)
    assert level_values(levels, 2, 3e38, 1).tolist() == [-np.float32(3e38), 0, np.float32(3e38)]
    assert level_values(levels, 2, 3e38, -1).tolist() == [np.float32(3e38), np.inf, np.inf]


def test_the_values_of_a_mask_alone_are_its_scale() -> None:
    sparse = sparse_tensor((9,), [1, 8], [0, 0], 0)
    assert level_values(sparse.levels, 0, 0.5).tolist() == [0.5, 0.5]
    assert np.concatenate(list(sparse.dense_blocks(0.5))).tolist() == [0, 0.5, *[0] * 6, 0.5]


@pytest.mark.parametrize(("bits", "form"), [(16, "<H"), (32, "<I")])
@LAWS
@given(data=st.data())
def test_float_levels_are_the_value_itself(bits: int, form: str, data: st.DataObject) -> None:
    patterns = data.draw(st.lists(st.integers(1, (1 << bits) - 1), min_size=1, max_size=5))
    sparse = sparse_tensor((len(patterns),), list(range(len(patterns))), patterns, bits)
    expected = b"".join(struct.pack(form, pattern).rjust(4, b"\0") for pattern in patterns)
    assert level_values(sparse.levels, bits, 1.0).astype("<f4").tobytes() == expected


@LAWS
@given(sparse=sparse_tensors(largest=500), scale=st.sampled_from([0.0, 0.75, 1e-30, 3.0]))
def test_dense_blocks_hold_the_kept_values_and_zeros(sparse: SparseTensor, scale: float) -> None:
    values = level_values(sparse.levels, sparse.bits, scale)
    dense = np.zeros(sparse.layout.entries, np.float32)
    dense[positions(sparse)] = values
    for block_entries in (8, 64, 1 << 20):
        blocks = list(sparse.dense_blocks(scale, block_entries))
        lengths = [len(block) for block in blocks]
        assert all(length == block_entries for length in lengths[:-1])
        assert 0 < lengths[-1] <= block_entries
        assert np.concatenate(blocks).tobytes() == dense.tobytes()


@LAWS
@given(sparse=sparse_tensors())
def test_the_counts_are_those_of_the_mask(sparse: SparseTensor) -> None:
    stats = SparseStats(sparse)
    assert stats.layout == sparse.layout
    assert stats.occupied == {
        size: len({position // size for position in positions(sparse)}) for size in GROUP_SIZES
    }
    before = [-1, *positions(sparse)][: len(sparse.levels)]
    gaps = [place - last - 1 for last, place in zip(before, positions(sparse), strict=True)]
    assert sparse.gaps.tolist() == gaps


@pytest.mark.parametrize(
    ("kept", "bits", "expected"),
    [(0, 8, 0), (8, 0, 0), (8, 2, 16), (4, 0, 8), (4, 1, 12), (1, 0, 8 * 0.5435644431995964)],
)
def test_shannons_bound_is_the_masks_entropy_and_the_levels(kept: int, bits: int, expected: float) -> None:
    assert shannon_bits(SparseLayout((2, 4), kept, bits)) == pytest.approx(expected, rel=1e-12)


def test_shannons_bound_of_nothing_is_nothing() -> None:
    assert shannon_bits(SparseLayout((0, 4), 0, 8)) == 0


# What nobody may build


@pytest.mark.parametrize(
    ("mask", "levels", "bits", "message"),
    [
        ([1, 0], [1], 1, "mask (2,) or levels uint8 do not fit"),
        ([1], [1], 16, "mask (1,) or levels uint8 do not fit"),
        ([1], [0, 0], 0, "the mask does not mark 2 entries"),
        ([3], [1], 1, "the mask does not mark 1 entries"),
    ],
)
def test_a_tensor_whose_parts_do_not_fit_is_a_bug(
    mask: list[int], levels: list[int], bits: int, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SparseTensor((7,), np.array(mask, np.uint8), np.array(levels, np.uint8), bits)


def test_a_kept_float_of_the_pattern_zero_is_a_bug() -> None:
    with pytest.raises(ValueError, match=r"^a kept value has the bit pattern 0$"):
        sparse_tensor((4,), [0, 1], [0, 5], 16)
