"""DARE, Bin-Discard and BitDelta against docs/methods.md §2, §6.4 and §6.18, written anew entry by entry."""

import hashlib
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.checkpoints import message
from support.deltas import BLOCKS, DELTAS, TINY, Floats, delta, dense, marked, normal
from support.sparse_tensors import LAWS

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.merging.compression.bin_discard import bin_discard
from flexswitch.merging.compression.bitdelta import bitdelta
from flexswitch.merging.compression.dare import dare
from flexswitch.merging.compression.p_discard import p_discard
from flexswitch.merging.compression.random_mask import drawn_blocks
from flexswitch.merging.compression.t_switch import t_switch
from flexswitch.merging.methods.registry import get_method
from flexswitch.merging.methods.settings import check_settings

DROPS = st.sampled_from(["0", "0.1", "0.5", "0.9", "0.99"])


def reference_draw(count: int, drop: str, seed: int, task: str, name: str) -> NDArray[np.bool_]:
    """Returns which of so many entries are drawn: those whose own number, of 2^64, is below their share."""
    key = hashlib.sha256(f"{seed}\0{task}\0{name}".encode()).digest()
    generator = np.random.PCG64(int.from_bytes(key, "little"))
    numbers = [int(generator.random_raw()) for _ in range(count)]
    return np.array([Fraction(number, 1 << 64) < 1 - Fraction(drop) for number in numbers], np.bool_)


def knob(kept: Floats) -> np.float32:
    """Returns ‖kept‖₂ / √(number kept)."""
    return np.float32(math.sqrt(math.fsum(float(value) ** 2 for value in kept) / len(kept)))


@LAWS
@given(values=DELTAS, drop=DROPS, block=BLOCKS, seed=st.integers(-3, 1 << 70))
def test_dare_scales_up_what_is_drawn(values: Floats, drop: str, block: int, seed: int) -> None:
    found = dare(delta(values, block), drop=float(drop), seed=seed)
    flat = values.reshape(-1)
    kept = reference_draw(len(flat), drop, seed, "task", "w") & (flat != 0)
    share = float(1 - Decimal(drop))
    expected = [
        np.float32(float(value) / share) if keep else 0 for value, keep in zip(flat, kept, strict=True)
    ]
    assert marked(found).tolist() == kept.tolist()
    assert dense(found).tolist() == np.array(expected, np.float32).tolist()
    assert (found.sparse.bits, found.scale, found.sparse.shape) == (32, 1, values.shape)


@LAWS
@given(values=DELTAS, drop=DROPS, block=BLOCKS)
def test_dare_in_16_bits_rounds_to_bfloat16_and_keeps_no_zero(values: Floats, drop: str, block: int) -> None:
    whole, found = (dare(delta(values, block), drop=float(drop), bits=bits) for bits in (32, 16))
    rounded = torch.from_numpy(dense(whole)).to(torch.bfloat16).float().numpy()
    assert dense(found).tolist() == rounded.tolist()
    assert marked(found).tolist() == (rounded != 0).tolist()
    assert found.sparse.bits == 16


def test_what_is_drawn_depends_on_seed_task_and_name_alone() -> None:
    values = normal((40, 50))
    first = marked(dare(delta(values)))
    for block in (8, 24, 640):
        assert marked(dare(delta(values, block))).tolist() == first.tolist()
    assert marked(dare(delta(-2 * values))).tolist() == first.tolist()
    others = [dare(delta(values, name="v")), dare(delta(values, task="t")), dare(delta(values), seed=1)]
    for other in others:
        assert marked(other).tolist() != first.tolist()


def test_a_zero_takes_a_number_too() -> None:
    values, gaps = np.ones(400, np.float32), np.ones(400, np.float32)
    gaps[::3] = 0
    whole = marked(dare(delta(values), drop=0.5))
    assert marked(dare(delta(gaps), drop=0.5)).tolist() == (whole & (gaps != 0)).tolist()


def test_the_share_that_is_drawn_and_the_mean_are_as_expected() -> None:
    values = np.ones(1_000_000, np.float32)
    for drop in (0.1, 0.5, 0.9):
        found = dare(delta(values, 1 << 12), drop=drop)
        assert abs(len(found.sparse.levels) / 1e6 - (1 - drop)) < 5 * math.sqrt(drop * (1 - drop) / 1e6)
        assert dense(found).mean() == pytest.approx(1, abs=0.02)


def test_dropping_nothing_draws_every_entry() -> None:
    ((_, drawn),) = drawn_blocks(delta(normal((5000,))), 0, 0)
    assert drawn.all()
    assert np.array_equal(dense(dare(delta(normal((9, 9))), drop=0)), normal((9, 9)).reshape(-1))


@pytest.mark.parametrize(("value", "bits"), [(3e38, 32), (3.3961775e38, 16)])
def test_a_value_that_grows_beyond_its_bits_is_refused(value: float, bits: int) -> None:
    values = np.full(100, value, np.float32)
    drop = 0.5 if bits == 32 else 0.0
    told = message(InputError, lambda: dare(delta(values), drop=drop, bits=bits))
    assert told == f"tensor 'w' divided by {1 - drop:g} is infinite in {bits} bits"


@pytest.mark.parametrize("bits", [0, 8, 17, 64])
def test_dare_refuses_other_bits(bits: int) -> None:
    found = message(UsageError, lambda: check_settings(get_method("dare", "compression"), {"bits": bits}))
    assert found == f"setting bits={bits} of dare: expected 16 or 32"


@LAWS
@given(values=DELTAS, drop=DROPS, block=BLOCKS)
def test_bin_discard_by_magnitude_is_t_switch(values: Floats, drop: str, block: int) -> None:
    one, two = (method(delta(values, block), drop=float(drop)) for method in (bin_discard, t_switch))
    assert marked(one).tolist() == marked(two).tolist()
    assert (one.sparse.levels.tolist(), one.scale) == (two.sparse.levels.tolist(), two.scale)


@LAWS
@given(values=DELTAS, drop=DROPS, block=BLOCKS, seed=st.integers(0, 9))
def test_bin_discard_by_chance_has_dares_mask_signs_and_the_knob(
    values: Floats, drop: str, block: int, seed: int
) -> None:
    found = bin_discard(delta(values, block), by="random", drop=float(drop), seed=seed)
    mask = marked(dare(delta(values, block), drop=float(drop), seed=seed))
    kept = values.reshape(-1)[mask]
    assert marked(found).tolist() == mask.tolist()
    assert found.sparse.levels.tolist() == [int(value > 0) for value in kept]
    if len(kept):
        assert found.scale == pytest.approx(knob(kept), rel=1e-6, abs=2 * TINY)


@pytest.mark.parametrize("by", ["magnitude", "random"])
def test_binarised_entries_have_the_norm_of_what_was_kept(by: str) -> None:
    values = normal((40, 25))
    found = bin_discard(delta(values), by=by, drop=0.6)  # type: ignore[arg-type]
    norm = np.linalg.norm(values.reshape(-1)[marked(found)])
    np.testing.assert_allclose(np.linalg.norm(dense(found)), norm, rtol=1e-6)


@LAWS
@given(rows=st.integers(1, 9), columns=st.integers(1, 40), block=BLOCKS, seed=st.integers(0, 99))
def test_bitdelta_keeps_every_sign_of_a_matrix_under_its_mean(
    rows: int, columns: int, block: int, seed: int
) -> None:
    values = normal((rows, columns), seed)
    values[values < -1] = 0
    values[values > 1] = -0.0
    found = bitdelta(delta(values, block))
    mean = np.float32(math.fsum(abs(float(value)) for value in values.reshape(-1)) / values.size)
    if mean:
        assert found.scale == mean
        assert dense(found).tolist() == np.where(values.reshape(-1) >= 0, mean, -mean).tolist()
        assert marked(found).all()


@pytest.mark.parametrize(
    ("name", "shape", "embeddings", "is_binary"),
    [
        ("layer.weight", (6, 7), "full", True),
        ("layer.bias", (6,), "full", False),
        ("conv.weight", (6, 7, 1), "full", False),
        ("encoder.word_embeddings.weight", (6, 7), "full", False),
        ("Embed.weight", (6, 7), "full", False),
        ("Embed.weight", (6, 7), "bits", True),
        ("embed.bias", (6,), "bits", False),
    ],
)
def test_bitdelta_keeps_what_is_no_linear_weight_in_full(
    name: str, shape: tuple[int, ...], embeddings: str, is_binary: bool
) -> None:
    values = normal(shape)
    values.reshape(-1)[2] = 0
    found = bitdelta(delta(values, name=name), embeddings=embeddings)  # type: ignore[arg-type]
    assert found.sparse.bits == (1 if is_binary else 32)
    if not is_binary:
        assert np.array_equal(dense(found), values.reshape(-1))
        assert marked(found).tolist() == (values.reshape(-1) != 0).tolist()


def test_bitdelta_keeps_a_matrix_whole_whose_mean_is_zero_in_float32() -> None:
    values = np.zeros((5, 5), np.float32)
    values[3, 2] = -TINY
    found = bitdelta(delta(values))
    assert (found.sparse.bits, marked(found).sum()) == (32, 1)
    assert np.array_equal(dense(found), values.reshape(-1))


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3,), (2, 9)])
def test_what_is_empty_or_zero_keeps_nothing(shape: tuple[int, ...]) -> None:
    values = np.zeros(shape, np.float32)
    values.reshape(-1)[::2] = -0.0
    for method in (dare, bin_discard, bitdelta, p_discard):
        found = method(delta(values))
        assert found.sparse.shape == shape
        assert len(found.sparse.levels) == 0
    assert len(bin_discard(delta(values), by="random").sparse.levels) == 0
