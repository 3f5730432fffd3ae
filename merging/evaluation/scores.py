"""The score of one method."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class RoutingScore:
    """The routing of the samples.

    accuracy: % of samples routed to their own task; counts: (task, routed task); entropy: mean over samples,
    in bits; snapped: % of samples with at least one share that was dropped.
    """

    accuracy: float
    counts: NDArray[np.int64]
    entropy: float
    snapped: float


@dataclass(frozen=True)
class Score:
    """One row of the table.

    values: task → the value of its metric; bytes_per_task: stored bytes, without the base; seconds: per
    sample; time_over_base: time relative to the base's forward pass on the same batches, None without one.
    """

    method: str
    values: dict[str, float]
    bytes_per_task: float
    seconds: float
    routing: RoutingScore | None = None
    time_over_base: float | None = None

    @property
    def average(self) -> float:
        """The mean of the values over tasks."""
        return sum(self.values.values()) / len(self.values)
