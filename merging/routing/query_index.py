"""Per-sample weights from the nearest exemplars of a query set.

Source: Qi et al. 2025 (arXiv 2412.00054), Auto-Switch; docs/methods.md §3.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.merging.routing.cross_validation import leave_one_out
from flexswitch.merging.routing.neighbour_search import APPROXIMATE_FROM, NeighbourSearch, sample_positions
from flexswitch.merging.routing.query_set import QuerySet
from flexswitch.merging.routing.vote import leading_tasks, votes

_FAR = 0.99  # share of the exemplars that are not far from the others
_MEASURED = 4096  # most exemplars whose distance to the nearest other one is measured


class RoutingResult(NamedTuple):
    """The routing of a batch of samples.

    weights: (sample, task) float32, the tasks' shares of the votes, which sum to 1, or the mixed shares
    (mixing.py); leading: (sample,) int64, the task of the largest weight, where ties go to the task with the
    nearer exemplar; distance: (sample,) float32, to the nearest exemplar; far: (sample,) bool, whether that
    distance exceeds the one that 99 % of the exemplars keep to their nearest other exemplar.
    """

    weights: Tensor
    leading: Tensor
    distance: Tensor
    far: Tensor


class QueryIndex:
    """Searches a query set by Euclidean distance: FAISS on the CPU; on CUDA its GPU build, else torch.

    neighbours: how many exemplars vote, or all if there are fewer. vote: "uniform" or "kernel".
    A sample's answer does not depend on the rest of the batch. Several threads may search at once.
    """

    def __init__(
        self,
        query_set: QuerySet,
        neighbours: int,
        device: str = "cpu",
        vote: str = "uniform",
        approximate_from: int = APPROXIMATE_FROM,
    ) -> None:
        self.tasks = query_set.header.tasks
        self.task_ids = query_set.task_ids
        self.neighbours = neighbours
        self._vote = vote
        self._search = NeighbourSearch(query_set.points, device, approximate_from=approximate_from)
        self._projection = query_set.projection
        self.far_from = _usual_distance(self._search)

    @property
    def recall(self) -> float:
        """The share of the nearest exemplars that the search finds; 1 if it is exact."""
        return self._search.recall

    def weights(self, features: Tensor) -> RoutingResult:
        """Returns the tasks' weights for features (sample, width), on the CPU.

        Raises: InputError if the width is not that of the exemplars, or a feature is not finite.
        """
        points = features.detach().float()
        if self._projection is not None:
            points = self._projection(points)
        width = self._search.vectors.shape[1]
        if points.shape[1] != width:
            raise InputError(f"features of width {points.shape[1]}, the query index holds width {width}")
        queries = points.cpu().numpy()
        if not np.isfinite(queries).all():
            raise InputError("the features of a sample are not finite; it has no nearest exemplar")
        distances, positions = self._search.search(queries, self.neighbours)
        nearest = self.task_ids[positions]  # (sample, neighbour)
        weights = votes(distances, nearest, len(self.tasks), self._vote)
        return RoutingResult(
            torch.from_numpy(weights.astype(np.float32)),
            torch.from_numpy(leading_tasks(weights, nearest)),
            torch.from_numpy(distances[:, 0].astype(np.float32)),
            torch.from_numpy(distances[:, 0] > self.far_from),
        )

    def leave_one_out(self) -> NDArray[np.int64]:
        """Returns the task that each exemplar is routed to by the others, (exemplar,).

        Raises: InputError if there is only one exemplar.
        """
        if len(self._search) < 2:
            raise InputError("the query index holds one exemplar, and no other one to compare it with")
        return leave_one_out(self._search, self.task_ids, self.neighbours, self._vote)


def _usual_distance(search: NeighbourSearch) -> float:
    """Returns the 99 % quantile of the distance to the nearest other exemplar; infinite for one exemplar."""
    if len(search) < 2:
        return float("inf")
    nearest = search.nearest_others(sample_positions(len(search), _MEASURED), 1)
    return float(np.quantile(nearest.distances, _FAR))
