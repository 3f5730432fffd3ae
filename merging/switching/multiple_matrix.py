"""A multiple of the base's weights as a delta matrix, as weight decay leaves it.

It has no product of its own: that with the base is multiplied (delta_products.py).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.switching.activations import Ids


@dataclass(frozen=True, eq=False)
class MultipleMatrix:
    """factor · base. base: (row, column), which shares the model's memory."""

    base: Tensor
    factor: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.base.shape
        return rows, columns

    @property
    def nbytes(self) -> int:
        """The size in memory, without the base."""
        return 0

    def dense(self) -> Tensor:
        """Returns the delta, (row, column) float32."""
        return self.factor * self.base.to(torch.float32)

    def add_to(self, weights: FloatArray, factor: float) -> None:
        """Adds factor · τ to (row, column) weights in place."""
        torch.from_numpy(weights).add_(self.base.to(torch.float32), alpha=factor * self.factor)

    def add_rows(self, ids: Ids, positions: Ids, factors: FloatArray, out: FloatArray) -> None:
        """Adds factors[i] · τ[ids[positions[i]]] to out[positions[i]].

        ids: (token,), out: (token, column).
        """
        rows = self.base[torch.from_numpy(ids[positions])].to(torch.float32).numpy()
        out[positions] += (factors * self.factor)[:, None] * rows
