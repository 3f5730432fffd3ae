"""The leading singular values and vectors of a matrix, in float64.

The truncated decomposition is the best approximation of its rank (Eckart and Young 1936).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_SPARE, _ITERATIONS = 8, 3  # vectors beyond those wanted, and rounds


class Triples(NamedTuple):
    """The leading singular triples, (row, k), (k,), (k, column), and all singular values that are not 0."""

    left: Tensor
    values: Tensor
    right: Tensor
    spectrum: Tensor

    def error(self, rank: int) -> float:
        """Returns the Frobenius norm of what a rank leaves out."""
        return float(self.spectrum[rank:].square().sum().sqrt())


def leading_triples(matrix: Tensor, most: int) -> Triples:
    """Returns the leading singular triples of a float64 matrix, at most so many.

    Rows and columns of zeros are left out of the computation: their singular vectors are exactly 0 there.
    """
    rows, columns = matrix.any(dim=1), matrix.any(dim=0)
    left, values, right = torch.linalg.svd(matrix[rows][:, columns], full_matrices=False)
    kept = min(most, len(values))
    whole_left, whole_right = matrix.new_zeros(len(rows), kept), matrix.new_zeros(kept, len(columns))
    whole_left[rows], whole_right[:, columns] = left[:, :kept], right[:kept]
    return Triples(whole_left, values[:kept].clone(), whole_right, values)


def approximate_triples(matrix: Tensor, most: int) -> Triples:
    """Returns about the leading singular triples of a large float64 matrix, at most so many.

    Subspace iteration from a fixed start (N. Halko, P.-G. Martinsson, J. A. Tropp 2011, "Finding structure
    with randomness", arXiv 0909.4061, algorithm 4.4). `spectrum` is that of the subspace.
    """
    count = min(most + _SPARE, *matrix.shape)
    start = np.random.default_rng(0).standard_normal((matrix.shape[1], count))
    basis = torch.linalg.qr(matrix @ torch.from_numpy(start)).Q
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return Triples((basis @ left)[:, :most], values[:most].clone(), right[:most], values)
