"""TVQ against docs/methods.md §6.17, written anew entry by entry, and its bound on the error."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from support import laws
from support.checkpoints import message
from support.commands import Runner
from support.deltas import BLOCKS, DELTAS, TINY, Floats, delta, dense, marked, normal
from support.sparse_tensors import LAWS

from flexswitch.codecs.errors import UsageError
from flexswitch.merging.compression.tvq import tvq
from flexswitch.merging.methods.registry import get_method
from flexswitch.merging.methods.settings import check_settings

BITS = st.integers(1, 8)
MANY = laws.settings(150, LAWS)


def reference_step(values: list[float], bits: int) -> float:
    """Returns D, as the least float32 that is no smaller; of a constant its magnitude."""
    low, high = min(values), max(values)
    exact = (high - low) / (2**bits - 1) if low < high else abs(low)
    step = np.float32(exact)
    while float(step) < exact:
        step = np.nextafter(step, np.float32(math.inf))
    return float(step)


def reference(values: list[float], bits: int) -> tuple[list[int], int, float]:
    """Returns each entry's level, the zero point and D; Python, too, rounds halves to the even number."""
    low, high, step = min(values), max(values), reference_step(values, bits)
    zero = -round(low / step) if low < high else int(low < 0)
    levels = [min(max(round(value / step) + zero, 0), 2**bits - 1) for value in values]
    return levels, zero, step


@MANY
@given(values=DELTAS, bits=BITS, block=BLOCKS)
def test_every_entry_gets_the_level_of_the_text(values: Floats, bits: int, block: int) -> None:
    found, flat = tvq(delta(values, block), bits=bits), values.reshape(-1).tolist()
    if not any(flat):
        assert not marked(found).any()
        return
    levels, zero, step = reference(flat, bits)
    assert (found.zero, found.scale, found.sparse.bits) == (zero, step, bits)
    assert marked(found).tolist() == [level != zero for level in levels]
    assert found.sparse.levels.tolist() == [level for level in levels if level != zero]
    expected = [np.float32(step * (level - zero)) for level in levels]
    assert dense(found).tolist() == [float(value) for value in expected]


@MANY
@given(values=DELTAS, bits=BITS)
@example(values=np.array([-1, 1], np.float32), bits=1)
@example(values=np.array([-1.5, 1.5, 0.4], np.float32), bits=2)
@example(values=np.array([1, np.nextafter(np.float32(1), np.float32(0))], np.float32), bits=8)
@example(values=np.array([TINY, -TINY, 2 * TINY], np.float32), bits=2)
def test_no_entry_is_off_by_more_than_half_a_step(values: Floats, bits: int) -> None:
    found, flat = dense(tvq(delta(values), bits=bits)), values.reshape(-1)
    largest = float(np.abs(flat).max())
    rounding = 2.0**-23 * largest + TINY  # the value's own, in float32
    step = reference_step(flat.tolist(), bits)
    error = np.abs(found.astype(np.float64) - flat.astype(np.float64)).max()
    assert error <= step / 2 * (1 + 1e-5) + rounding


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("value", [1.0, -1.0, 0.1, -3e38, TINY, -TINY])
def test_a_constant_is_stored_as_it_is(bits: int, value: float) -> None:
    values = np.full((3, 5), value, np.float32)
    found = tvq(delta(values), bits=bits)
    assert np.array_equal(dense(found), values.reshape(-1))
    assert found.zero in (0, 1)


@pytest.mark.parametrize("values", [[10, 11, 10.5], [-10, -11, -10.5], [1e30, 1.0000001e30]])
def test_a_delta_of_one_sign_has_its_zero_point_outside_the_levels(values: list[float]) -> None:
    found = tvq(delta(np.array(values, np.float32)), bits=3)
    assert found.zero is not None
    assert not 0 <= found.zero < 8
    assert marked(found).all()
    np.testing.assert_allclose(dense(found), values, rtol=0.01)


def test_the_two_ends_of_float32_in_one_bit_stay_finite() -> None:
    found = dense(tvq(delta(np.array([-3e38, 3e38, 0], np.float32)), bits=1))
    assert np.isfinite(found).all()


def test_more_bits_are_never_worse() -> None:
    values = normal((50, 60))
    errors = [
        np.linalg.norm(dense(tvq(delta(values), bits=bits)) - values.reshape(-1)) for bits in range(1, 9)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 * np.linalg.norm(values)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3,), (2, 9)])
def test_what_is_empty_or_zero_keeps_nothing(shape: tuple[int, ...]) -> None:
    found = tvq(delta(np.zeros(shape, np.float32)))
    assert found.sparse.shape == shape
    assert len(found.sparse.levels) == 0


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_bits_outside_their_range_are_refused(bits: int) -> None:
    found = message(UsageError, lambda: check_settings(get_method("tvq", "compression"), {"bits": bits}))
    assert found == f"setting bits={bits} of tvq: expected a whole number from 1 to 8"


def test_the_commands_of_rtvq_give_the_shared_part_plus_an_offset(models: Path, flexswitch: Runner) -> None:
    mean = ("merge", "red.safetensors", "blue.safetensors", "--base", "base.safetensors", "-o", "mean")
    shared = ("compress", "mean", "--base", "base.safetensors", "-o", "shared.fsw")
    steps = [
        (*mean, "--method", "average"),
        (*shared, "--method", "tvq", "--set", "bits=3"),
        ("merge", "shared.fsw", "--base", "base.safetensors", "-o", "corrected", "--task", "shared"),
        ("compress", "red.safetensors", "--base", "corrected", "-o", "red.fsw", "--method", "tvq"),
        ("verify", "red.fsw", "--base", "corrected"),
        ("merge", "red.fsw", "--base", "corrected", "-o", "restored", "--task", "red"),
    ]
    assert [flexswitch(*step).status for step in steps] == [0] * len(steps)
    base, red, blue = (load_file(f"{stem}.safetensors") for stem in ("base", "red", "blue"))
    found = load_file("restored/model.safetensors")
    assert np.array_equal(found["head.weight"], red["head.weight"])
    for name, weights in base.items():
        mean_vector = ((red[name].astype(np.float64) + blue[name]) / 2 - weights).reshape(-1).tolist()
        corrected = load_file("corrected/model.safetensors")[name]
        step = reference_step(mean_vector, 3)
        assert np.abs(corrected - weights - np.reshape(mean_vector, weights.shape)).max() < 0.501 * step
        offset = red[name] - corrected
        assert np.abs(found[name] - red[name]).max() < 0.501 * reference_step(offset.reshape(-1).tolist(), 2)
