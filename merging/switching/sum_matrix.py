"""A delta matrix that is the sum of kept entries and of a product of two thin matrices."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.switching.activations import Activations, Ids
from flexswitch.merging.switching.csr import CsrMatrix
from flexswitch.merging.switching.float32 import Float32Matrix
from flexswitch.merging.switching.int8 import Int8Matrix
from flexswitch.merging.switching.low_rank_matrix import LowRankMatrix


@dataclass(frozen=True, eq=False)
class SumMatrix:
    """entries + low_rank, of one shape."""

    entries: CsrMatrix | Int8Matrix | Float32Matrix
    low_rank: LowRankMatrix

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.low_rank.shape

    @property
    def nbytes(self) -> int:
        """The size in memory."""
        return self.entries.nbytes + self.low_rank.nbytes

    def dense(self) -> Tensor:
        """Returns the delta, (row, column) float32."""
        return self.entries.dense() + self.low_rank.dense()

    def add_to(self, weights: FloatArray, factor: float) -> None:
        """Adds factor · τ to (row, column) weights in place."""
        self.entries.add_to(weights, factor)
        self.low_rank.add_to(weights, factor)

    def add_rows(self, ids: Ids, positions: Ids, factors: FloatArray, out: FloatArray) -> None:
        """Adds factors[i] · τ[ids[positions[i]]] to out[positions[i]].

        ids: (token,), out: (token, column).
        """
        self.entries.add_rows(ids, positions, factors, out)
        self.low_rank.add_rows(ids, positions, factors, out)

    def add_product(
        self, inputs: Activations, positions: Ids, factors: FloatArray, bias: FloatArray, out: FloatArray
    ) -> None:
        """Adds factors[i] · (τ·x + bias) to out[positions[i]] for x = inputs[positions[i]].

        inputs: (token, column), bias: (row,), out: (token, row).
        """
        self.entries.add_product(inputs, positions, factors, np.zeros_like(bias), out)
        self.low_rank.add_product(inputs, positions, factors, bias, out)
