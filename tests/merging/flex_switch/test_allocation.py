"""What a tensor can keep and at what error, and the data-free allocation among tensors, by brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.deltas import Floats
from support.sparse_tensors import LAWS

from flexswitch.codecs.sparse import binary_entropy
from flexswitch.merging.flex_switch.allocation import allocate, option_bits
from flexswitch.merging.flex_switch.rate_distortion import RateDistortionTable, rate_distortion_table

Doubles = NDArray[np.float64]


def heavy(count: int, seed: int, size: float = 1.0) -> Floats:
    """Returns random values with long tails, and some zeros."""
    generator = np.random.default_rng(seed)
    values = size * generator.normal(size=count) * np.exp(generator.normal(size=count))
    values[generator.random(count) < 0.1] = 0
    values[0] = size
    return values.astype(np.float32)


def brute_error(delta: Floats, threshold: float, bits: int, scale: float) -> float:
    """Returns ‖τ − τ̂‖² where entries above the threshold take the nearest of 2^bits even levels."""
    values = delta.astype(np.float64)
    levels = scale * (2 * np.arange(2**bits) + 1 - 2**bits) / (2**bits - 1)
    nearest = levels[np.abs(values[:, None] - levels).argmin(1)]
    return float(((values - np.where(np.abs(values) > threshold, nearest, 0)) ** 2).sum())


@pytest.mark.parametrize("count", [1, 2, 9, 300, 5000])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e15])
def test_each_choice_keeps_what_is_above_its_threshold_at_the_error_it_says(count: int, size: float) -> None:
    delta = heavy(count, seed=count, size=size)
    tables = rate_distortion_table(delta, np.array([1, 2, 4, 8]))
    total = float((delta.astype(np.float64) ** 2).sum())
    magnitudes = np.abs(delta)
    for row in range(0, len(tables.kept), 1 + len(tables.kept) // 60):
        threshold, bits, scale = tables.thresholds[row], int(tables.bits[row]), tables.scales[row]
        assert tables.kept[row] == np.count_nonzero(magnitudes > threshold)
        found = brute_error(delta, threshold, bits, scale) if tables.kept[row] else total
        # At two bits or more a bin of magnitudes is rounded as one.
        np.testing.assert_allclose(
            tables.errors[row], found, rtol=1e-9 if bits == 1 else 5e-3, atol=1e-6 * total
        )


def test_the_first_choice_keeps_nothing_and_for_each_bit_width_one_keeps_everything() -> None:
    delta = heavy(1000, seed=0)
    tables = rate_distortion_table(delta, np.array([1, 4]))
    assert (tables.kept[0], tables.thresholds[0]) == (0, np.abs(delta).max())
    assert tables.errors[0] == pytest.approx(float((delta.astype(np.float64) ** 2).sum()), rel=1e-12)
    for bits in (1, 4):
        assert tables.kept[tables.bits == bits].max() == np.count_nonzero(delta)
    assert set(tables.bits[1:].tolist()) == {1, 4}


def test_the_scale_of_signs_alone_is_the_mean_magnitude_of_what_is_kept() -> None:
    delta = heavy(2000, seed=1)
    tables = rate_distortion_table(delta, np.array([1]))
    magnitudes = np.abs(delta.astype(np.float64))
    for row in range(1, len(tables.kept)):
        kept = magnitudes[magnitudes > tables.thresholds[row]]
        assert tables.scales[row] == pytest.approx(kept.mean(), rel=1e-9)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_scale_of_more_bits_is_hardly_worse_than_the_best_of_a_fine_grid(bits: int) -> None:
    delta = heavy(1000, seed=2)
    tables = rate_distortion_table(delta, np.array([bits]))
    for row in np.flatnonzero(tables.kept >= 20)[::12]:
        threshold = float(tables.thresholds[row])
        largest = float(np.abs(delta).max())
        tried = np.geomspace(largest / 50, largest, 150)
        least = min(brute_error(delta, threshold, bits, scale) for scale in tried)
        left = brute_error(np.where(np.abs(delta) > threshold, 0, delta), np.inf, bits, 1)
        assert tables.errors[row] - left <= 1.35 * (least - left) + 1e-9 * least


def test_nothing_costs_nothing_and_the_rest_what_the_entropy_says() -> None:
    delta = heavy(1000, seed=3)
    tables = rate_distortion_table(delta, np.array([1, 2]))
    found = option_bits(tables, 1000, 0.5)
    double = option_bits(tables, 1000, 1.0)
    entropies = [
        1000 * binary_entropy(kept / 1000) + kept * bits
        for kept, bits in zip(tables.kept.tolist(), tables.bits.tolist(), strict=True)
    ]
    assert found[0] == double[0] == 0
    np.testing.assert_allclose(2 * (double - found)[1:], entropies[1:])
    assert (found[1:] > 0.5 * np.array(entropies)[1:]).all()  # a record comes on top


def random_tables(seed: int, count: int) -> tuple[RateDistortionTable, Doubles]:
    """Returns a table whose error and bits have nothing to do with each other but at the first."""
    generator = np.random.default_rng(seed)
    errors = generator.exponential(10.0 ** generator.uniform(-6, 3), count)
    errors[0] = errors.max() * 1.01
    bits = generator.exponential(1000, count)
    bits[0] = 0
    zeros = np.zeros(count, np.int64)
    return RateDistortionTable(
        zeros.astype(np.float32), zeros, zeros, np.zeros(count), errors, np.zeros(count)
    ), bits


def multipliers(errors: Doubles, bits: Doubles, chosen: int) -> tuple[float, float]:
    """Returns between which multipliers a choice is that of least error + multiplier · bits."""
    more, gain = bits - bits[chosen], errors[chosen] - errors
    dearer, cheaper = more > 0, more < 0
    assert (gain[more == 0] <= 0).all()
    least = max((gain[dearer] / more[dearer]).tolist(), default=0.0)
    most = min((gain[cheaper] / more[cheaper]).tolist(), default=np.inf)
    return max(least, 0.0), most


@LAWS
@given(tensors=st.integers(1, 12), seed=st.integers(0, 9999), share=st.floats(0, 1.1))
def test_one_multiplier_makes_every_choice_the_best_and_the_target_is_kept(
    tensors: int, seed: int, share: float
) -> None:
    generator = np.random.default_rng(seed)
    found = [random_tables(seed * 100 + tensor, int(generator.integers(1, 40))) for tensor in range(tensors)]
    tables, bits = [each[0] for each in found], [each[1] for each in found]
    target = share * sum(float(cost.max()) for cost in bits)
    chosen = allocate(tables, bits, target)
    total = sum(float(cost[row]) for cost, row in zip(bits, chosen, strict=True))
    assert total <= target
    bounds = [multipliers(one.errors, cost, row) for one, cost, row in zip(tables, bits, chosen, strict=True)]
    least, most = max(low for low, _ in bounds), min(high for _, high in bounds)
    assert least <= most * (1 + 1e-9)
    # No smaller multiplier keeps the target too: at the next one down, a tensor takes more than fits.
    if least > 1e-30:
        under = [
            float(cost[int(np.argmin(one.errors + least * (1 - 1e-9) * cost))])
            for one, cost in zip(tables, bits, strict=True)
        ]
        assert sum(under) > target


def test_what_all_fits_is_kept_at_the_least_error() -> None:
    tables, bits = random_tables(5, 30)
    assert allocate([tables], [bits], bits.sum()) == [int(tables.errors.argmin())]
    assert allocate([tables], [bits], 0) == [0]


def test_a_tensor_that_matters_more_gets_more_of_the_bits() -> None:
    quiet, loud = (
        rate_distortion_table(heavy(4000, seed=7, size=size), np.array([1, 2, 4])) for size in (1, 5)
    )
    bits = [option_bits(each, 4000, 1.0) for each in (quiet, loud)]
    rows = allocate([quiet, loud], bits, 3000)
    assert quiet.kept[rows[0]] < loud.kept[rows[1]]
