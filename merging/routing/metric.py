"""Learns a low-rank metric from the exemplars' tasks, and compares it with the Euclidean one.

Source: Gao et al. 2026, "Auto-FlexSwitch" (arXiv 2604.28109); docs/methods.md §5.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.format.index_record import RoutingAccuracy
from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.threads import one_torch_thread
from flexswitch.merging.routing.cross_validation import FOLDS, cross_validate, leave_one_out
from flexswitch.merging.routing.grid import on_grid
from flexswitch.merging.routing.lda import Scatter, lda, scatter_of
from flexswitch.merging.routing.nca import nca
from flexswitch.merging.routing.neighbour_search import NeighbourSearch

SHRINKAGES = (0.6, 0.4, 0.2, 0.1)  # the strongest first
STEPS = (0, 5, 10, 20, 40)
_BITS = 12
_PAIRED = 2000  # most exemplars that pairs are formed of
_MEASURED = 8000  # most exemplars that accuracy is measured on


@dataclass(frozen=True, eq=False)
class LearnedMetric:
    """The learned metric, or the reason for keeping the Euclidean one.

    metric: (rank, width) float32, None if the Euclidean one is kept; accuracy: None if nothing could be
    learned; reason: why the Euclidean metric is kept; steps: of NCA; shrinkage: of LDA.
    """

    metric: FloatArray | None
    accuracy: RoutingAccuracy | None
    reason: str = ""
    steps: int = 0
    shrinkage: float = 0.0


def learn_metric(features: Tensor, task_ids: NDArray[np.int32], rank: int) -> LearnedMetric:
    """Returns the metric learned from normalised features (exemplar, width) float64.

    NCA starts from the linear discriminants. The shrinkage and the number of steps are chosen on held-out
    exemplars, and the learned metric is kept if it routes them better than the Euclidean one. The result is
    the same for any thread count.
    """
    ids = torch.from_numpy(task_ids.astype(np.int64))
    counts = ids.bincount()
    if (counts > 0).sum() < 2:
        return LearnedMetric(None, None, "there is one task")
    if int(counts[counts > 0].min()) < FOLDS:
        return LearnedMetric(None, None, f"a task has fewer than {FOLDS} exemplars")
    if bool((features == features[0]).all()):
        return LearnedMetric(None, None, "all exemplars have the same features")
    with one_torch_thread():
        return _learned(features, ids, rank)


def _learned(features: Tensor, ids: Tensor, rank: int) -> LearnedMetric:
    rows = spread_rows(len(ids), _MEASURED)
    scatters: list[Scatter] = []  # of each fold, reused as the start of NCA
    shrinkage, _ = best_shrinkage(features[rows], ids[rows], rank, scatters)
    scatters.append(scatter_of(features, ids))

    def tried(some: Tensor, of: Tensor) -> list[Tensor]:
        start = lda(scatters.pop(0), rank, shrinkage)
        paired = spread_rows(len(of), _PAIRED)
        return nca(some[paired], of[paired], start, STEPS)

    def all_tried(some: Tensor, of: Tensor) -> list[Tensor]:
        return [torch.eye(some.shape[1], dtype=some.dtype), *tried(some, of)]

    euclidean, *by_steps = cross_validate(features[rows], ids[rows], all_tried)
    chosen = first_as_good(by_steps, len(rows))
    metric = on_grid(tried(features, ids)[chosen], _BITS)
    accuracy = RoutingAccuracy(
        euclidean_loo=_left_out(features[rows], ids[rows]),
        euclidean_held_out=euclidean,
        learned_loo=_left_out(features[rows] @ metric.T, ids[rows]),
        learned_held_out=by_steps[chosen],
    )
    if by_steps[chosen] <= euclidean:
        return LearnedMetric(None, accuracy, "the learned metric is no better on held-out exemplars")
    return LearnedMetric(metric.float().numpy(), accuracy, "", STEPS[chosen], shrinkage)


def _left_out(points: Tensor, task_ids: Tensor) -> float:
    """Returns the share (%) of exemplars that their nearest others route to their own task."""
    ids = task_ids.numpy().astype(np.int32)
    return 100 * float((leave_one_out(NeighbourSearch(points.float().numpy()), ids) == ids).mean())


def best_shrinkage(
    features: Tensor, task_ids: Tensor, rank: int, scatters: list[Scatter] | None = None
) -> tuple[float, float]:
    """Returns the strongest shrinkage that is as good as the best, and its share (%) of right exemplars.

    The exemplars are held out. scatters: a list to which the folds' scatters are appended, in order.
    """

    def tried(some: Tensor, of: Tensor) -> list[Tensor]:
        scatter = scatter_of(some, of)
        if scatters is not None:
            scatters.append(scatter)
        return [lda(scatter, rank, each, fill=False) for each in SHRINKAGES]

    found = cross_validate(features, task_ids, tried)
    chosen = first_as_good(found, len(task_ids))
    return SHRINKAGES[chosen], found[chosen]


def first_as_good(shares: Sequence[float], count: int) -> int:
    """Returns the index of the first share (%) within a standard error of the best; count: of exemplars.

    >>> first_as_good([80.0, 81.0, 82.0], 800)
    1
    """
    best = max(shares) / 100
    margin = 100 * (best * (1 - best) / count) ** 0.5
    return next(n for n, each in enumerate(shares) if each >= 100 * best - margin)


def spread_rows(count: int, most: int) -> Tensor:
    """Returns up to `most` evenly spread rows: equal shares of tasks whose exemplars are in task order."""
    return torch.arange(count) if count <= most else torch.arange(most) * count // most
