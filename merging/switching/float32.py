"""A dense delta matrix of float32 values: where neither CSR nor int8 fits.

A product is torch's own, so it costs rows times columns times tokens, as the base's product does.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.switching.activations import Activations, Ids


@dataclass(frozen=True, eq=False)
class Float32Matrix:
    """A dense matrix. values: (row, column) float32."""

    values: FloatArray

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.values.shape
        return rows, columns

    @property
    def nbytes(self) -> int:
        """The size in memory."""
        return self.values.nbytes

    def dense(self) -> Tensor:
        """Returns the delta, (row, column) float32."""
        return torch.from_numpy(self.values)

    def add_to(self, weights: FloatArray, factor: float) -> None:
        """Adds factor · τ to (row, column) weights in place."""
        torch.from_numpy(weights).add_(torch.from_numpy(self.values), alpha=factor)

    def add_rows(self, ids: Ids, positions: Ids, factors: FloatArray, out: FloatArray) -> None:
        """Adds factors[i] · τ[ids[positions[i]]] to out[positions[i]].

        ids: (token,), out: (token, column).
        """
        out[positions] += factors[:, None] * self.values[ids[positions]]

    def add_product(
        self, inputs: Activations, positions: Ids, factors: FloatArray, bias: FloatArray, out: FloatArray
    ) -> None:
        """Adds factors[i] · (τ·x + bias) to out[positions[i]] for x = inputs[positions[i]].

        inputs: (token, column), bias: (row,), out: (token, row).
        """
        taken = torch.from_numpy(inputs.values)[torch.from_numpy(positions)]
        product = torch.nn.functional.linear(taken, torch.from_numpy(self.values))
        out[positions] += factors[:, None] * (product.numpy() + bias)
