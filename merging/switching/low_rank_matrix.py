"""A delta matrix as the product of two thin ones: a token's product takes rank · (rows + columns) steps."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flexswitch.codecs.compiled import compiled
from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.threads import run_in_parts
from flexswitch.merging.switching.activations import Activations, Ids


@dataclass(frozen=True, eq=False)
class LowRankMatrix:
    """leftᵀ · right. left: (rank, row), right: (rank, column), float32."""

    left: FloatArray
    right: FloatArray

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.left.shape[1], self.right.shape[1]

    @property
    def nbytes(self) -> int:
        """The size in memory."""
        return self.left.nbytes + self.right.nbytes

    def dense(self) -> Tensor:
        """Returns the delta, (row, column) float32."""
        return torch.from_numpy(self.left).T @ torch.from_numpy(self.right)

    def add_to(self, weights: FloatArray, factor: float) -> None:
        """Adds factor · τ to (row, column) weights in place."""
        left, right = torch.from_numpy(self.left), torch.from_numpy(self.right)
        torch.from_numpy(weights).addmm_(left.T, right, alpha=factor)

    def add_rows(self, ids: Ids, positions: Ids, factors: FloatArray, out: FloatArray) -> None:
        """Adds factors[i] · τ[ids[positions[i]]] to out[positions[i]].

        ids: (token,), out: (token, column).
        """
        rows = torch.from_numpy(self.left[:, ids[positions]]).T @ torch.from_numpy(self.right)
        out[positions] += factors[:, None] * rows.numpy()

    def add_product(
        self, inputs: Activations, positions: Ids, factors: FloatArray, bias: FloatArray, out: FloatArray
    ) -> None:
        """Adds factors[i] · (τ·x + bias) to out[positions[i]] for x = inputs[positions[i]].

        inputs: (token, column), bias: (row,), out: (token, row).
        """
        taken = torch.from_numpy(inputs.values).index_select(0, torch.from_numpy(positions))
        shares = (torch.from_numpy(self.right) @ taken.T).numpy()
        arrays = (self.left, shares, positions, factors, bias, out)
        run_in_parts(lambda first, last: _add_sums(*arrays, first, last), len(positions), taken.numel())


def stacked(pairs: list[tuple[FloatArray, FloatArray]], transposed: bool) -> LowRankMatrix:
    """Returns the sum of products of a (row, rank) matrix and a transposed (column, rank) one.

    transposed: whether the transpose of the sum is returned.
    """
    left, right = (np.ascontiguousarray(np.concatenate(each, axis=1).T) for each in zip(*pairs, strict=True))
    return LowRankMatrix(right, left) if transposed else LowRankMatrix(left, right)


@compiled
def _add_sums(
    left: FloatArray,
    shares: FloatArray,
    positions: Ids,
    factors: FloatArray,
    bias: FloatArray,
    out: FloatArray,
    first: int,
    last: int,
) -> None:
    """Adds factors[i] · (sharesᵀ[i] · left + bias) to out[positions[i]]; shares: (rank, entry)."""
    rank = left.shape[0]
    for index in range(first, last):
        line, factor = out[positions[index]], factors[index]
        for row in range(line.size):
            line[row] += factor * bias[row]
        number = 0
        while number + 4 <= rank:
            share_0, share_1 = factor * shares[number, index], factor * shares[number + 1, index]
            share_2, share_3 = factor * shares[number + 2, index], factor * shares[number + 3, index]
            left_0, left_1, left_2, left_3 = (
                left[number], left[number + 1], left[number + 2], left[number + 3]
            )  # fmt: skip
            for row in range(line.size):
                line[row] += (
                    share_0 * left_0[row]
                    + share_1 * left_1[row]
                    + share_2 * left_2[row]
                    + share_3 * left_3[row]
                )
            number += 4
        while number < rank:
            share, vector = factor * shares[number, index], left[number]
            for row in range(line.size):
                line[row] += share * vector[row]
            number += 1
