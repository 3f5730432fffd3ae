"""What `zoo.json` says of a zoo's query index."""

from typing import Annotated, Literal

from pydantic import Field

from flexswitch.codecs.format.fields import Count, Sha256
from flexswitch.codecs.format.strict import Strict


class RoutingAccuracy(Strict):
    """Percentage of exemplars whose neighbours vote for their own task.

    *_loo: each exemplar left out from the search; the metric is learned from all, which makes it optimistic.
    *_held_out: a fifth held out from learning and search.
    """

    euclidean_loo: float
    euclidean_held_out: float
    learned_loo: float
    learned_held_out: float


class IndexRecord(Strict):
    """The file of the query index, and its settings.

    rank: number of columns of the points with a learned metric. accuracy: present if a metric was tried.
    """

    file: str
    size: Count
    sha256: Sha256
    features: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    normalise: Literal["none", "centred", "standardised"] = "none"
    metric: Literal["euclidean", "learned"] = "euclidean"
    rank: Annotated[int, Field(ge=1)] | None = None
    accuracy: RoutingAccuracy | None = None
    per_task: Annotated[int, Field(ge=1)]
    seed: int
