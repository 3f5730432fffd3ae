"""A delta matrix as the product of two thin ones: a token's product takes rank · (rows + columns) steps."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.switching.activations import Activations, Ids


@dataclass(frozen=True, eq=False)
class LowRankMatrix:
    """left · rightᵀ. left: (row, rank), right: (column, rank), float32."""

    left: FloatArray
    right: FloatArray

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.left), len(self.right)

    @property
    def nbytes(self) -> int:
        """The size in memory."""
        return self.left.nbytes + self.right.nbytes

    def dense(self) -> Tensor:
        """Returns the delta, (row, column) float32."""
        return torch.from_numpy(self.left) @ torch.from_numpy(self.right).T

    def add_to(self, weights: FloatArray, factor: float) -> None:
        """Adds factor · τ to (row, column) weights in place."""
        left, right = torch.from_numpy(self.left), torch.from_numpy(self.right)
        torch.from_numpy(weights).addmm_(left, right.T, alpha=factor)

    def add_rows(self, ids: Ids, positions: Ids, factors: FloatArray, out: FloatArray) -> None:
        """Adds factors[i] · τ[ids[positions[i]]] to out[positions[i]].

        ids: (token,), out: (token, column).
        """
        rows = torch.from_numpy(self.left[ids[positions]]) @ torch.from_numpy(self.right).T
        out[positions] += factors[:, None] * rows.numpy()

    def add_product(
        self, inputs: Activations, positions: Ids, factors: FloatArray, bias: FloatArray, out: FloatArray
    ) -> None:
        """Adds factors[i] · (τ·x + bias) to out[positions[i]] for x = inputs[positions[i]].

        inputs: (token, column), bias: (row,), out: (token, row).
        """
        taken = torch.from_numpy(inputs.values)[torch.from_numpy(positions)]
        product = (taken @ torch.from_numpy(self.right)) @ torch.from_numpy(self.left).T
        out[positions] += factors[:, None] * (product.numpy() + bias)


def stacked(pairs: list[tuple[FloatArray, FloatArray]], transposed: bool) -> LowRankMatrix:
    """Returns the sum of products left · rightᵀ, or its transpose."""
    left, right = (np.ascontiguousarray(np.concatenate(each, axis=1)) for each in zip(*pairs, strict=True))
    return LowRankMatrix(right, left) if transposed else LowRankMatrix(left, right)
