"""The score of one method."""

from dataclasses import dataclass
from statistics import fmean, geometric_mean

import numpy as np
from numpy.typing import NDArray

from flexswitch.merging.evaluation.metrics import Unit


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
    sample; time_over_base: time relative to the base's forward pass on the same batches, None without one;
    unit: of the values, None where they have several.
    """

    method: str
    values: dict[str, float]
    bytes_per_task: float
    seconds: float
    routing: RoutingScore | None = None
    time_over_base: float | None = None
    unit: Unit | None = "%"

    @property
    def average(self) -> float | None:
        """The mean of the values over tasks, of perplexities the geometric one; None for several units."""
        if self.unit is None:
            return None
        return (
            geometric_mean(self.values.values()) if self.unit == "perplexity" else fmean(self.values.values())
        )

    @property
    def goodness(self) -> float:
        """A number that is larger for a better average."""
        average = 0.0 if self.average is None else self.average
        return -average if self.unit == "perplexity" else average

    def shares_of(self, other: "Score") -> list[float]:
        """Returns how much of another's average this one has, and then of each task's value.

        It is 1 for equal ones and less for worse ones, such as larger perplexities. Empty if it is undefined.
        """
        if self.average is None or other.average is None:
            return []
        pairs = [
            (self.average, other.average),
            *((self.values[task], other.values[task]) for task in self.values),
        ]
        if self.unit == "perplexity":
            pairs = [(theirs, own) for own, theirs in pairs]
        return [own / theirs for own, theirs in pairs] if all(theirs for _, theirs in pairs) else []
