"""A delta matrix that is the sum of kept entries, a product of thin matrices and a multiple of the base's."""

from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import torch
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.switching.activations import Activations, Ids
from flexswitch.merging.switching.csr import CsrMatrix
from flexswitch.merging.switching.float32 import Float32Matrix
from flexswitch.merging.switching.int8 import Int8Matrix
from flexswitch.merging.switching.low_rank_matrix import LowRankMatrix
from flexswitch.merging.switching.multiple_matrix import MultipleMatrix

Multiplied = CsrMatrix | Int8Matrix | Float32Matrix | LowRankMatrix  # with a product of its own
Part = Multiplied | MultipleMatrix


@dataclass(frozen=True, eq=False)
class SumMatrix:
    """The sum of two or more matrices of one shape."""

    parts: tuple[Part, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.parts[0].shape

    @property
    def nbytes(self) -> int:
        """The size in memory."""
        return sum(part.nbytes for part in self.parts)

    def dense(self) -> Tensor:
        """Returns the delta, (row, column) float32."""
        return reduce(torch.add, (part.dense() for part in self.parts))

    def add_to(self, weights: FloatArray, factor: float) -> None:
        """Adds factor · τ to (row, column) weights in place."""
        for part in self.parts:
            part.add_to(weights, factor)

    def add_rows(self, ids: Ids, positions: Ids, factors: FloatArray, out: FloatArray) -> None:
        """Adds factors[i] · τ[ids[positions[i]]] to out[positions[i]].

        ids: (token,), out: (token, column).
        """
        for part in self.parts:
            part.add_rows(ids, positions, factors, out)

    @cached_property
    def multiplied(self) -> tuple[Multiplied, ...]:
        """The parts that inputs are multiplied by."""
        return tuple(part for part in self.parts if not isinstance(part, MultipleMatrix))

    @cached_property
    def rest(self) -> "Multiplied | SumMatrix":
        """The sum without the multiple of the base's."""
        return self.multiplied[0] if len(self.multiplied) == 1 else SumMatrix(self.multiplied)

    def add_product(
        self, inputs: Activations, positions: Ids, factors: FloatArray, bias: FloatArray, out: FloatArray
    ) -> None:
        """Adds factors[i] · (τ·x + bias) to out[positions[i]] for x = inputs[positions[i]], less multiples.

        inputs: (token, column), bias: (row,), out: (token, row).
        """
        for part in self.multiplied:
            part.add_product(inputs, positions, factors, bias, out)
            bias = np.zeros_like(bias)


def base_factor(matrix: object) -> float:
    """Returns the factor of the base's matrix that a delta matrix contains."""
    parts = matrix.parts if isinstance(matrix, SumMatrix) else (matrix,)
    return sum(part.factor for part in parts if isinstance(part, MultipleMatrix))
