"""How often exemplars are routed to their own task by others than themselves."""

from collections.abc import Callable

import torch
from torch import Tensor

FOLDS = 5
NEIGHBOURS = 10
_BLOCK = 1024

# (features, task ids) of some exemplars → matrices (rank, width), each a metric to try
Learn = Callable[[Tensor, Tensor], list[Tensor]]


def leave_one_out(points: Tensor, task_ids: Tensor) -> float:
    """Returns the share (%) of exemplars that their nearest others lead to their own task.

    points: (exemplar, rank); task_ids: (exemplar,) int64. Ten neighbours have a vote each.
    """
    found = []
    for start in range(0, len(points), _BLOCK):
        distances = torch.cdist(points[start : start + _BLOCK], points)  # (query, exemplar)
        rows = torch.arange(len(distances))
        distances[rows, rows + start] = torch.inf
        found.append(_leading(distances, task_ids, min(NEIGHBOURS, len(points) - 1)))
    return _percent(torch.cat(found) == task_ids)


def cross_validate(features: Tensor, task_ids: Tensor, learn: Learn) -> list[float]:
    """Returns for each metric the share (%) of exemplars that are led to their own task while held out.

    A fifth of each task's exemplars is held out in turn: neither `learn` nor the search has them.
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
    """Returns the fold of each exemplar, (exemplar,) int64: of each task every fifth one has the same."""
    found = torch.empty_like(task_ids)
    for task in torch.unique(task_ids):
        rows = torch.nonzero(task_ids == task).view(-1)
        found[rows] = torch.arange(len(rows)) % FOLDS
    return found


def _hits(features: Tensor, task_ids: Tensor, kept: Tensor, left: Tensor, metric: Tensor) -> Tensor:
    points = features @ metric.T
    exemplars, ids = points[kept], task_ids[kept]
    count = min(NEIGHBOURS, len(exemplars))
    blocks = torch.split(points[left], _BLOCK)
    leading = [_leading(torch.cdist(block, exemplars), ids, count) for block in blocks]
    return torch.cat(leading) == task_ids[left]


def _leading(distances: Tensor, task_ids: Tensor, count: int) -> Tensor:
    """Returns the task with most of the nearest, (query,); of equal ones that with the nearest exemplar."""
    nearest = task_ids[distances.topk(count, largest=False).indices]  # (query, neighbour)
    votes = (nearest.unsqueeze(2) == nearest.unsqueeze(1)).sum(2)  # (query, neighbour)
    first = (votes == votes.amax(1, keepdim=True)).int().argmax(1)
    return nearest[torch.arange(len(nearest)), first]


def _percent(right: Tensor) -> float:
    return 100 * float(right.double().mean())
