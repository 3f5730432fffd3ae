"""The rate in training, the estimated bytes, and its derivatives, against finite differences in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.sparse_tensors import LAWS

from flexswitch.merging.flex_switch.rate import fitted_factor, rate_of, row_entropy

Doubles = NDArray[np.float64]
BITS = np.array([1, 2, 4, 8])


def plain_rate(kept: Doubles, columns: int, shares: Doubles, factor: float) -> float:
    """Returns factor · Σ over rows of columns · H₂(kept / columns) + kept · Σ_b π_b · b."""
    share = kept / columns
    inside = np.where((share > 0) & (share < 1), share, 0.5)
    entropy = np.where(
        (share > 0) & (share < 1), -inside * np.log2(inside) - (1 - inside) * np.log2(1 - inside), 0
    )
    return float(factor * (columns * entropy + kept * (shares @ BITS)).sum())


def soft_count(magnitudes: Doubles, thresholds: Doubles, width: float) -> Doubles:
    """Returns how many entries pass soft gates, (row,)."""
    return (1 / (1 + np.exp(-(magnitudes - thresholds[:, None]) / width))).sum(1)


@LAWS
@given(
    rows=st.integers(1, 6),
    columns=st.integers(2, 90),
    width=st.floats(0.05, 0.5),
    factor=st.floats(0.3, 3),
    seed=st.integers(0, 999),
)
def test_derivatives_are_those_of_the_smoothed_count(
    rows: int, columns: int, width: float, factor: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    magnitudes, thresholds = np.abs(generator.normal(size=(rows, columns))), generator.uniform(0.2, 1.5, rows)
    shares = generator.dirichlet(np.ones(4))
    kept = np.count_nonzero(magnitudes > thresholds[:, None], axis=1)
    kept = np.clip(kept, 1, columns - 1)  # a full or empty row's entropy has no finite slope
    step = 1e-5
    around = [soft_count(magnitudes, thresholds + sign * step, width) for sign in (1, -1)]
    gradients = -(around[0] - around[1]) / (2 * step)
    found = rate_of(kept, gradients, columns, BITS, shares, factor)
    for row in range(rows):
        moved = []
        for counts in around:
            count = kept.astype(np.float64)
            count[row] += (counts - (around[0] + around[1]) / 2)[row]
            moved.append(plain_rate(count, columns, shares, factor))
        assert found.by_threshold[row] == pytest.approx(
            (moved[0] - moved[1]) / (2 * step), rel=1e-3, abs=1e-4
        )
    for candidate in range(4):
        turned = [shares + sign * step * np.eye(4)[candidate] for sign in (1, -1)]
        one, two = (plain_rate(kept.astype(np.float64), columns, each, factor) for each in turned)
        assert found.by_share[candidate] == pytest.approx((one - two) / (2 * step), rel=1e-6)


@LAWS
@given(kept=st.lists(st.integers(0, 30), min_size=1, max_size=9), factor=st.floats(0.3, 3))
def test_the_rate_is_entropy_and_levels_times_the_factor_with_a_record_on_top(
    kept: list[int], factor: float
) -> None:
    counts, shares = np.array(kept), np.array([0.1, 0.2, 0.3, 0.4])
    found, double = (
        rate_of(counts, np.ones(len(kept)), 30, BITS, shares, part) for part in (factor, 2 * factor)
    )
    plain = plain_rate(counts.astype(np.float64), 30, shares, factor)
    assert double.bits - found.bits == pytest.approx(plain, abs=1e-9)
    assert found.bits > plain
    assert row_entropy(counts, 30) == pytest.approx(plain_rate(counts.astype(np.float64), 30, 0 * shares, 1))


def test_an_empty_row_still_has_a_slope_and_a_full_one_too() -> None:
    found = rate_of(np.array([0, 10]), np.ones(2), 10, BITS, np.array([1.0, 0, 0, 0]), 1.0)
    assert np.isfinite(found.by_threshold).all()
    assert found.by_threshold[0] < 0


def test_the_fitted_factor_makes_the_estimate_what_was_stored() -> None:
    kept, columns, bits = np.array([50, 3, 0, 200]), 1000, 2
    factor = fitted_factor(150, kept, columns, bits, before=1.0)
    shares = (bits == BITS).astype(np.float64)
    assert plain_rate(kept.astype(np.float64), columns, shares, factor) == pytest.approx(8 * 150)


def test_too_little_to_tell_leaves_the_factor_as_it_was() -> None:
    for kept in ([0, 0], [1, 0]):
        assert fitted_factor(40, np.array(kept), 100, 1, before=0.7) == 0.7


def test_a_factor_stays_within_bounds_whatever_was_stored() -> None:
    few, many = (fitted_factor(size, np.array([500]), 1000, 1, before=1.0) for size in (1, 10**9))
    assert 0 < few < 1 < many < 100
