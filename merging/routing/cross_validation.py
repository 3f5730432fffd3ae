"""The share of exemplars that other exemplars route to their own task."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.merging.routing.neighbour_search import NeighbourSearch
from flexswitch.merging.routing.vote import leading_tasks, votes

FOLDS = 5
NEIGHBOURS = 10
_BLOCK = 1024

# (features, task ids) of some exemplars → matrices (rank, width), each of them a metric to compare
Learn = Callable[[Tensor, Tensor], list[Tensor]]


def leave_one_out(
    search: NeighbourSearch, task_ids: NDArray[np.int32], neighbours: int = NEIGHBOURS, vote: str = "uniform"
) -> NDArray[np.int64]:
    """Returns the task that each exemplar's nearest others vote for, (exemplar,). task_ids: (exemplar,)."""
    leading = []
    for start in range(0, len(search), _BLOCK):
        positions = np.arange(start, min(start + _BLOCK, len(search)))
        distances, found = search.nearest_others(positions, neighbours)
        nearest = task_ids[found]  # (exemplar, neighbour)
        leading.append(leading_tasks(votes(distances, nearest, int(task_ids.max()) + 1, vote), nearest))
    return np.concatenate(leading)


def cross_validate(features: Tensor, task_ids: Tensor, learn: Learn) -> list[float]:
    """Returns each metric's share (%) of held-out exemplars that are routed to their own task.

    A fifth of each task's exemplars is held out in turn, from `learn` and from the search.
    features: (exemplar, width); task_ids: (exemplar,) int64.
    """
    fold_of = folds(task_ids)
    right: list[list[Tensor]] = []
    for fold in range(FOLDS):
        left, kept = fold_of == fold, fold_of != fold
        metrics = learn(features[kept], task_ids[kept])
        right.append([_hits(features, task_ids, kept, left, metric) for metric in metrics])
    return [_percent(torch.cat(each)) for each in zip(*right, strict=True)]


def folds(task_ids: Tensor) -> Tensor:
    """Returns the fold of each exemplar, (exemplar,) int64; a task's exemplars take turns."""
    found = torch.empty_like(task_ids)
    for task in torch.unique(task_ids):
        rows = torch.nonzero(task_ids == task).view(-1)
        found[rows] = torch.arange(len(rows)) % FOLDS
    return found


def _hits(features: Tensor, task_ids: Tensor, kept: Tensor, left: Tensor, metric: Tensor) -> Tensor:
    points, ids = (features @ metric.T).float().numpy(), task_ids.numpy()
    search = NeighbourSearch(points[kept.numpy()])
    distances, found = search.search(points[left.numpy()], NEIGHBOURS)
    nearest = ids[kept.numpy()][found]  # (exemplar, neighbour)
    routed = leading_tasks(votes(distances, nearest, int(ids.max()) + 1, "uniform"), nearest)
    return torch.from_numpy(routed == ids[left.numpy()])


def _percent(right: Tensor) -> float:
    return 100 * float(right.double().mean())
