"""What a start keeps stands for all that changed: how its scales grow."""

import numpy as np
import pytest
from support.deltas import normal

from flexswitch.codecs.sparse import binary_entropy
from flexswitch.merging.flex_switch.compression_task import widened
from flexswitch.merging.flex_switch.delta_rows import DeltaRows, Quantisation
from flexswitch.merging.flex_switch.initialisation import (
    best_norm_compensation,
    compensate_norm,
    initial_parameters,
    scale_at,
    uniform,
)
from flexswitch.merging.flex_switch.rate import RECORD_BITS
from flexswitch.merging.flex_switch.rate_distortion import RateDistortionTable, rate_distortion_table

BITS = np.array([1, 2, 4, 8])


def kept_of(width: int, share: float) -> tuple[DeltaRows, RateDistortionTable, Quantisation]:
    """Returns a tensor, its rate-distortion table, and the option of a bit-width that keeps about a share."""
    delta = normal((40, 30)).reshape(-1)
    tensor = DeltaRows(
        "w", (40, 30), "F32", np.arange(40), 30, lambda: delta, float(np.sqrt(np.square(delta).mean()))
    )
    tables = rate_distortion_table(delta, BITS)
    rows = np.flatnonzero(tables.bits == width)
    row = rows[np.abs(tables.kept[rows] - share * len(delta)).argmin()]
    thresholds = np.full(40, tables.thresholds[row])
    return tensor, tables, Quantisation(thresholds, width, float(np.float32(tables.scales[row])))


@pytest.mark.parametrize("share", [0.01, 0.2, 1.0])
def test_the_first_power_gives_signs_the_sum_of_all_magnitudes(share: float) -> None:
    tensor, tables, kept = kept_of(1, share)
    magnitudes = np.abs(tensor.delta.astype(np.float64))
    count = np.count_nonzero(magnitudes > kept.thresholds[0])
    (compensated,) = compensate_norm([tables], [kept], 1.0)
    assert compensated.scale * count == pytest.approx(magnitudes.sum(), rel=1e-6)
    assert (compensated.thresholds.tolist(), compensated.bits) == (kept.thresholds.tolist(), 1)


@pytest.mark.parametrize("width", [1, 4])
def test_half_a_power_grows_half_as_far_and_none_not_at_all(width: int) -> None:
    _, tables, kept = kept_of(width, 0.05)
    none, half, whole = (compensate_norm([tables], [kept], power)[0].scale for power in (0.0, 0.5, 1.0))
    assert none == kept.scale
    assert whole > 3 * kept.scale
    assert half == pytest.approx(np.sqrt(none * whole), rel=1e-6)


@pytest.mark.parametrize("power", [0.0, 0.4, 0.7, 0.8, 1.0])
def test_the_growth_of_least_loss_is_found_on_either_side(power: float) -> None:
    _, tables, kept = kept_of(1, 0.02)
    (wanted,) = compensate_norm([tables], [kept], power)
    least, found = best_norm_compensation(
        [tables], [kept], lambda tried: abs(np.log(tried[0].scale / wanted.scale))
    )
    assert (least, found[0].scale) == (0, wanted.scale)


def test_every_candidate_starts_with_the_growth_of_the_one_that_is_kept() -> None:
    tensor, tables, kept = kept_of(1, 0.05)
    (compensated,) = compensate_norm([tables], [kept], 0.7)
    plain, found = (
        initial_parameters([tensor], [tables], [each], BITS, False) for each in (kept, compensated)
    )
    np.testing.assert_allclose(
        found.log_scales - plain.log_scales,
        np.full((1, 4), np.log(compensated.scale / kept.scale)),
        rtol=1e-6,
    )
    assert np.exp(found.log_scales[0, 0]) == pytest.approx(compensated.scale, rel=1e-6)


@pytest.mark.parametrize(
    ("bits_an_entry", "width"),
    [(0.05, 1), (1.0, 1), (1.4, 1), (1.7, 2), (2.2, 2), (2.6, 4), (4.0, 4), (30.0, 8)],
)
def test_the_same_share_takes_wider_levels_where_signs_do_not_fill_the_size(
    bits_an_entry: float, width: int
) -> None:
    """A mask and signs take log2(3) = 1.58 bits an entry at most, two bits log2(5) = 2.32."""
    tensor, tables, _ = kept_of(1, 0.1)
    target = bits_an_entry * tensor.entries + RECORD_BITS
    (found,) = uniform([tensor], [tables], BITS, target, np.ones(1))
    assert found.bits == width
    share = float((np.abs(tensor.delta) > found.thresholds[0]).mean())
    spent = (binary_entropy(share) + share * width) / bits_an_entry
    assert spent <= 1
    assert spent > 0.8 or (width, share) == (8, 1)
    assert share <= 2**width / (1 + 2**width) or width == 8


@pytest.mark.parametrize("width", [2, 4, 8])
def test_wider_levels_have_their_own_best_scale_as_many_times_larger_as_before(width: int) -> None:
    _, tables, kept = kept_of(1, 0.05)
    (compensated,) = compensate_norm([tables], [kept], 0.7)
    plain, found = (widened(tables, each, width) for each in (kept, compensated))
    assert (found.bits, found.thresholds.tolist()) == (width, kept.thresholds.tolist())
    assert plain.scale == scale_at(tables, float(kept.thresholds[0]), width)
    assert found.scale / plain.scale == pytest.approx(compensated.scale / kept.scale, rel=1e-6)
    assert found.scale > 2 * plain.scale
