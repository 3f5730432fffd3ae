"""From features to points, against plain numpy one sample at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import laws
from support.checkpoints import message

from flexswitch.codecs.errors import InputError
from flexswitch.merging.routing.projection import Projection, fit_normalisation

WIDTH = 6


def features_of(seed, count=30, shift=3.0):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)) * 2 + shift


def plain_point(projection, row):
    """Returns one sample's point in float64."""
    row = row.double().numpy()
    if projection.mean is not None:
        row = row - projection.mean.astype(np.float64)
        if projection.deviation is not None:
            row = row / projection.deviation.astype(np.float64)
        else:
            parts = np.split(row, projection.parts)
            row = np.concatenate([part / np.linalg.norm(part) for part in parts])
    return row if projection.metric is None else projection.metric.astype(np.float64) @ row


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("normalise", ["none", "centred", "standardised"])
@pytest.mark.parametrize("rank", [None, 2])
def test_points_equal_plain_arithmetic(normalise, parts, rank):
    exemplars = features_of(0)
    fitted = fit_normalisation(exemplars.double(), normalise, parts) or Projection(parts)
    metric = None if rank is None else features_of(1, rank).numpy()
    projection = Projection(parts, fitted.mean, fitted.deviation, metric)
    if projection.mean is None and rank is None:
        return  # no projection at all
    assert (projection.normalise, projection.width) == (normalise, WIDTH)
    queries = features_of(2, 9)
    found = projection(queries)
    assert found.dtype == torch.float32
    expected = [plain_point(projection, row) for row in queries]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_no_normalisation_is_no_projection():
    assert fit_normalisation(features_of(0).double(), "none", 1) is None


def test_centred_exemplars_have_parts_of_length_1():
    exemplars = features_of(0)
    projection = fit_normalisation(exemplars.double(), "centred", 2)
    np.testing.assert_allclose(projection.mean, exemplars.mean(0), rtol=1e-5)
    lengths = projection(exemplars).reshape(-1, 2, 3).norm(dim=2)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_standardised_exemplars_have_the_mean_0_and_the_deviation_1():
    exemplars = features_of(0)
    points = fit_normalisation(exemplars.double(), "standardised", 1)(exemplars)
    torch.testing.assert_close(points.mean(0), torch.zeros(WIDTH), rtol=0, atol=1e-5)
    torch.testing.assert_close(points.std(0, unbiased=False), torch.ones(WIDTH), rtol=0, atol=1e-5)


def test_a_column_that_never_changes_stays_finite_and_small():
    exemplars = features_of(0)
    exemplars[:, 2] = 7
    points = fit_normalisation(exemplars.double(), "standardised", 1)(exemplars)
    assert points.isfinite().all()
    assert points[:, 2].abs().max() < 1e-3
    same = torch.ones(4, WIDTH)
    assert fit_normalisation(same.double(), "standardised", 1)(same).tolist() == [[0.0] * WIDTH] * 4


def test_a_sample_at_the_mean_has_the_point_0():
    projection = Projection(1, np.ones(WIDTH, np.float32))
    assert projection(torch.ones(1, WIDTH)).tolist() == [[0.0] * WIDTH]


@laws.settings(25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 100))
def test_the_length_of_centred_features_does_not_matter(seed, scale):
    exemplars = features_of(seed)
    projection = fit_normalisation(exemplars.double(), "centred", 1)
    mean = torch.from_numpy(projection.mean)
    moved = mean + scale * (exemplars - mean)
    torch.testing.assert_close(projection(moved), projection(exemplars), rtol=1e-3, atol=1e-3)


def test_a_sample_has_the_same_point_alone_and_in_any_batch():
    exemplars = torch.randn(300, 384, generator=torch.Generator().manual_seed(0))
    fitted = fit_normalisation(exemplars.double(), "centred", 2)
    metric = torch.randn(32, 384, generator=torch.Generator().manual_seed(1)).numpy()
    projection = Projection(2, fitted.mean, None, metric)
    together = projection(exemplars)
    for row in range(0, 300, 17):
        assert torch.equal(projection(exemplars[row : row + 1])[0], together[row])


def test_features_of_another_width_are_refused():
    projection = fit_normalisation(features_of(0).double(), "centred", 1)
    assert message(InputError, lambda: projection(torch.zeros(2, 5))) == (
        "features of width 5, the query index holds width 6"
    )
