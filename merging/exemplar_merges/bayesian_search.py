"""Bayesian optimisation: the maximum of a function on [0, 1]ᵈ that is expensive to compute.

A Gaussian process with a Matérn kernel is fitted to the values found, and the next point is the one of 10,000
random ones with the largest expected improvement. Source: Snoek et al. 2012 (arXiv 1206.2944), section 2.
"""

import math
import warnings

import numpy as np
import torch
from numpy.typing import NDArray

from flexswitch.codecs.errors import InputError

Doubles = NDArray[np.float64]

_CANDIDATES = 10_000
_MARGIN = 0.01  # by which a value counts as an improvement
_NOISE = 1e-6


def next_point(points: Doubles, values: Doubles, random: int, seed: int) -> Doubles:
    """Returns the point to compute next, given those computed, (point, coordinate), and their values.

    random: number of the first points that are drawn without a model. What is drawn depends on the seed and
    the number of points alone.
    """
    generator = np.random.Generator(np.random.PCG64([seed, len(points)]))
    if len(points) < random:
        return np.asarray(generator.random(points.shape[1]))
    candidates = generator.random((_CANDIDATES, points.shape[1]))
    return np.asarray(candidates[np.argmax(_expected_improvement(points, values, candidates))])


def _expected_improvement(points: Doubles, values: Doubles, candidates: Doubles) -> Doubles:
    """Returns the expected improvement over the best value, (candidate,)."""
    try:
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import Matern
        from threadpoolctl import threadpool_limits
    except ImportError as reason:
        raise InputError("this search needs scikit-learn; pip install 'flexswitch[eval]'") from reason
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # a kernel width at its bound, as for values that are all equal
        process = GaussianProcessRegressor(
            Matern(nu=2.5), alpha=_NOISE, normalize_y=True, n_restarts_optimizer=5, random_state=0
        ).fit(points, values)
        mean, deviation = process.predict(candidates, return_std=True)
    gain = mean - values.max() - _MARGIN
    ratio = gain / np.maximum(deviation, 1e-12)
    below = torch.special.ndtr(torch.from_numpy(ratio)).numpy()
    return np.asarray(gain * below + deviation * np.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi))
