"""A unit's delta as float32 values: for what neither few entries nor small whole numbers hold."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.switching.activations import Activations

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Float32Matrix:
    """values: (row, column) float32."""

    values: FloatArray

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.values.shape
        return rows, columns

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return self.values.nbytes

    def dense(self) -> Tensor:
        """Returns the delta, (row, column) float32."""
        return torch.from_numpy(self.values)

    def add_to(self, weights: FloatArray, factor: float) -> None:
        """Adds factor · τ to (row, column) weights in place."""
        torch.from_numpy(weights).add_(torch.from_numpy(self.values), alpha=factor)

    def add_rows(self, ids: Ids, places: Ids, factors: FloatArray, out: FloatArray) -> None:
        """Adds factors[i] · τ[ids[places[i]]] to out[places[i]]; ids: (token,), out: (token, column)."""
        out[places] += factors[:, None] * self.values[ids[places]]

    def add_product(
        self, inputs: Activations, places: Ids, factors: FloatArray, shift: FloatArray, out: FloatArray
    ) -> None:
        """Adds factors[i] · (τ·x + shift) to out[places[i]] for x = inputs[places[i]].

        inputs: (token, column), shift: (row,), out: (token, row).
        """
        taken = torch.from_numpy(inputs.values)[torch.from_numpy(places)]
        product = torch.nn.functional.linear(taken, torch.from_numpy(self.values))
        out[places] += factors[:, None] * (product.numpy() + shift)
