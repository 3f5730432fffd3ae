"""The search for a maximum: near it on a smooth function, and a function of the seed and the points alone."""

import numpy as np
from numpy.typing import NDArray

from flexswitch.merging.exemplar_merges.bayesian_search import next_point

Doubles = NDArray[np.float64]
PEAK = np.array([0.3, 0.8])


def value(point: Doubles) -> float:
    return 100 - 60 * float(((point - PEAK) ** 2).sum())


def search(seed: int, count: int = 14) -> Doubles:
    """Returns the points in the order in which they are chosen, five of them random."""
    points = np.zeros((0, 2))
    while len(points) < count:
        values = np.array([value(point) for point in points])
        points = np.vstack([points, next_point(points, values, 5, seed)])
    return points


def test_the_search_comes_near_the_maximum_and_beats_random_points() -> None:
    points = search(0)
    assert np.all((points >= 0) & (points <= 1))
    assert np.abs(points[5:] - PEAK).max(axis=1).min() < 0.03
    assert max(map(value, points[5:])) > max(map(value, points[:5]))


def test_the_same_seed_gives_the_same_points() -> None:
    np.testing.assert_array_equal(search(1, 7), search(1, 7))
    assert not np.array_equal(search(1, 7), search(2, 7))


def test_values_that_are_all_equal_are_searched_too() -> None:
    points = np.random.default_rng(0).random((6, 3))
    found = next_point(points, np.full(6, 50.0), 5, 0)
    assert found.shape == (3,)
    assert np.isfinite(found).all()
