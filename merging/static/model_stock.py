"""Model Stock: the mean of the models, drawn back to the base as far as the deltas point apart.

Source: Jang et al. 2024, "Model Stock" (arXiv 2403.19522), equation 7; docs/methods.md §6.20.
"""

from typing import Annotated

import numpy as np
from pydantic import Field

from flexswitch.merging.static.gram import (
    Matrix,
    Rows,
    Vector,
    combined_deltas,
    combined_rows,
    delta_products,
    row_products,
)
from flexswitch.merging.static.task_deltas import Combination, TensorDeltas

_LEAST_NORMS, _SINGULAR = 1e-6, 1e-6


def model_stock(
    deltas: TensorDeltas,
    *,
    flatten: Annotated[
        bool, Field(description="One t for the whole tensor, or one for each row (the last dimension).")
    ] = True,
) -> Combination:
    """Returns t times the mean delta, with t = K c / (1 + (K − 1) c) and c the mean cosine of two deltas."""
    count = len(deltas.weights)
    if flatten:
        return combined_deltas([float(_ratios(delta_products(deltas)[None])[0]) / count] * count)
    rows = Rows.of(deltas.shape, is_first=False)
    ratios = _ratios(row_products(deltas, rows))
    return combined_rows(np.repeat(ratios[:, None] / count, count, axis=1), rows)


def _ratios(products: Matrix) -> Vector:
    """Returns t of each vector, (vector,); 0, which keeps the base, where the deltas cancel each other."""
    count = products.shape[1]
    norms = np.sqrt(products.diagonal(axis1=1, axis2=2))  # (vector, task)
    cosines = [
        np.clip(products[:, one, other] / np.maximum(norms[:, one] * norms[:, other], _LEAST_NORMS), -1, 1)
        for one in range(count)
        for other in range(one + 1, count)
    ]
    cosine = np.mean(cosines, axis=0)
    divisor = 1 + (count - 1) * cosine
    singular = np.abs(divisor) < _SINGULAR
    found: Vector = np.where(singular, 0.0, count * cosine / np.where(singular, 1.0, divisor))
    return found
