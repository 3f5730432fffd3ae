"""Model Stock: the mean of the models, drawn back to the base as far as the deltas point apart.

Source: Jang et al. 2024, "Model Stock" (arXiv 2403.19522), equation 7; docs/methods.md §6.20.
"""

import numpy as np

from flexswitch.merging.static.gram import Matrix, combined_deltas, delta_products
from flexswitch.merging.static.task_deltas import Combination, TensorDeltas

_LEAST_NORMS, _SINGULAR = 1e-6, 1e-6


def model_stock(deltas: TensorDeltas) -> Combination:
    """Returns t times the mean delta, with t = K c / (1 + (K − 1) c) and c the mean cosine of two deltas."""
    count = len(deltas.weights)
    return combined_deltas([_ratio(delta_products(deltas)) / count] * count)


def _ratio(products: Matrix) -> float:
    """Returns t; 0, which keeps the base, where the deltas cancel each other."""
    count = len(products)
    norms = np.sqrt(np.diag(products))
    cosines = [
        np.clip(products[one, other] / max(norms[one] * norms[other], _LEAST_NORMS), -1, 1)
        for one in range(count)
        for other in range(one + 1, count)
    ]
    cosine = float(np.mean(cosines))
    divisor = 1 + (count - 1) * cosine
    return 0.0 if abs(divisor) < _SINGULAR else count * cosine / divisor
