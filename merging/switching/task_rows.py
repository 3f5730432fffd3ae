"""One task's share in a batch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.switching.activations import Ids
from flexswitch.merging.switching.delta_matrix import DeltaMatrix
from flexswitch.merging.switching.padding import Padding


@dataclass(eq=False)
class TaskRows:
    """One task's share in a batch.

    number: its column in the weights; deltas: tensor → delta matrix; rows: the rows with a weight other than
    0, rising; factors: λ·w of each such row, float32.
    """

    number: int
    deltas: Mapping[str, DeltaMatrix]
    rows: Ids
    factors: FloatArray
    padding: Padding | None = None
    _tokens: tuple[int, Ids, FloatArray] | None = None
    _within: dict[tuple[int, int, int], tuple[Ids, FloatArray]] = field(default_factory=dict)

    def tokens(self, per_row: int) -> tuple[Ids, FloatArray]:
        """Returns the positions of these rows' tokens, without padding, and each token's factor.

        Positions are those in the result of `BatchPlan.unpad`.
        """
        if self._tokens is None or self._tokens[0] != per_row:
            if self.padding is not None and self.padding.covers(per_row):
                found = self.padding.positions(self.rows, self.factors)
            else:
                positions = (self.rows[:, None] * per_row + np.arange(per_row)).reshape(-1)
                found = positions, np.repeat(self.factors, per_row)
            self._tokens = per_row, *found
        return self._tokens[1:]

    def tokens_within(self, per_row: int, start: int, stop: int) -> tuple[Ids, FloatArray]:
        """Returns those of `tokens` with positions from `start` to before `stop`; cached for all layers."""
        key = per_row, start, stop
        if key not in self._within:
            positions, factors = self.tokens(per_row)
            own = slice(*np.searchsorted(positions, (start, stop)))
            self._within[key] = positions[own], factors[own]
        return self._within[key]
