"""The low-rank form of a matrix: singular vectors in as many bits as their values are worth.

Source: docs/methods.md §4, "Singular vectors"; mixed bit-widths come from Ping et al. 2024
(arXiv 2406.08903).
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.sums import square_sum
from flexswitch.merging.compression.delta import Compressed, Squares
from flexswitch.merging.compression.singular_bands import WEIGHT_BITS, band, quantised, sum_of_bands
from flexswitch.merging.task_vectors.singular_triples import Triples, approximate_triples, leading_triples

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

# Bit-width → relative squared error of a normal variable in so many even levels (Max 1960, table II).
_ERRORS = {2: 0.1188, 3: 0.03744, 4: 0.01154, 5: 0.003495, 6: 0.001041, 7: 3.035e-4, 8: 8.714e-5}
_WIDTHS = np.array([0, *_ERRORS])
_GAINS = np.array([0.0, *((1 - error) ** 2 for error in _ERRORS.values())])  # of σ², both vectors rounded
_HALVINGS = 60
_LEAST_VALUE = 1e-4  # of the norm: below is what rounding left, of the weights or of the leading pairs
_EXACT_SIDE = 512  # up to which all singular values are computed
_FEW = 4  # of a larger matrix's, up to one in so many are found by iteration


class Matrix(NamedTuple):
    """A matrix, and its leading singular triples in float64."""

    values: FloatArray
    triples: Triples

    @property
    def side(self) -> int:
        """Rows and columns together."""
        return sum(self.values.shape)


def matrix_of(values: FloatArray, bits: float) -> Matrix:
    """Returns a matrix, (row, column), with as many triples as may be kept in so many bits."""
    least = int(_WIDTHS[1]) * sum(values.shape) + WEIGHT_BITS
    most = min(min(values.shape), int(bits // least))
    whole = torch.from_numpy(values).to(torch.float64)
    iterated = min(values.shape) > _EXACT_SIDE and _FEW * most <= min(values.shape)
    return Matrix(values, (approximate_triples if iterated else leading_triples)(whole, most))


def widths(values: Doubles, side: int, bits: float) -> Integers:
    """Returns the bit-width of each pair of vectors, 0 for those left out, (k,).

    Σ σ² · gain is the most for so many bits, but for those that a share of a pair would take. values:
    singular values, (k,). side: entries of a pair of vectors.
    """
    costs = np.where(_WIDTHS > 0, side * _WIDTHS + WEIGHT_BITS, 0)
    worth = np.square(values)
    worth[worth <= _LEAST_VALUE**2 * worth.sum()] = 0

    def chosen(price: float) -> Integers:  # of a bit
        return np.asarray(np.argmax(worth[:, None] * _GAINS - price * costs, axis=1))

    low, high = 0.0, float(worth.max(initial=0.0))  # at this price nothing is kept
    for _ in range(_HALVINGS):
        price = (low + high) / 2
        low, high = (price, high) if costs[chosen(price)].sum() > bits else (low, price)
    return np.asarray(_WIDTHS[chosen(high)])


def low_rank_form(matrix: Matrix, shape: tuple[int, ...], rows: Integers, bits: float) -> Compressed | None:
    """Returns the matrix in so many bits, with its squares; None if not one pair of vectors takes so few.

    The left vectors are those of least squared error for the right ones as they were rounded. shape: of the
    tensor. rows: (row,), the tensor's rows that the matrix consists of; the others are 0.
    """
    kept = widths(matrix.triples.values.numpy(), matrix.side, bits)
    pairs = np.flatnonzero(kept)
    if not len(pairs):
        return None
    right = np.zeros((matrix.values.shape[1], len(pairs)))
    groups = [(int(width), np.flatnonzero(kept[pairs] == width)) for width in np.unique(kept[pairs])[::-1]]
    columns = {}
    for width, places in groups:
        columns[width] = quantised(matrix.triples.right.T.numpy()[:, pairs[places]], width)
        right[:, places] = columns[width].values(width)
    left = _refitted(matrix.values, right)
    bands = []
    for width, places in groups:
        above = quantised(left[:, places], width).spread(rows, shape[0])
        bands.append(band(shape, above, columns[width], np.ones(len(places)), width))
    found = sum_of_bands(bands)
    off = matrix.values - found.values().reshape(shape)[rows]
    squares = Squares(square_sum(off.reshape(-1)), square_sum(matrix.values.reshape(-1)))
    return replace(found, squares=squares)


def _refitted(values: FloatArray, right: Doubles) -> Doubles:
    """Returns the left vectors of least ‖values − left rightᵀ‖, (row, k)."""
    vectors: Tensor = torch.from_numpy(right)
    products = torch.from_numpy(values).to(torch.float64) @ vectors
    # Rounded vectors may depend on each other.
    return np.asarray((products @ torch.linalg.pinv(vectors.T @ vectors, hermitian=True)).numpy())
