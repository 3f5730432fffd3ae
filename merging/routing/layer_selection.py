"""Selects the layers whose features route held-out exemplars best."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.threads import one_torch_thread
from flexswitch.merging.routing.cross_validation import cross_validate
from flexswitch.merging.routing.metric import best_shrinkage, spread_rows
from flexswitch.merging.routing.projection import Normalisation, fit_normalisation

_TOLERANCE = 1.0  # percentage points by which an earlier layer may be worse
_MEASURED = 4000  # most exemplars that are routed


def candidates(last: int) -> list[tuple[int, ...]]:
    """Returns the candidates: each layer alone, and each one with the embeddings.

    >>> candidates(2)
    [(0,), (1,), (0, 1), (2,), (0, 2)]
    """
    return [(0,), *(layers for n in range(1, last + 1) for layers in ((n,), (0, n)))]


def select_layers(
    states: Tensor,
    beside: Tensor,
    task_ids: NDArray[np.int32],
    normalise: Normalisation,
    rank: int | None,
) -> tuple[tuple[int, ...], dict[tuple[int, ...], float]]:
    """Returns the selected layers, and each candidate's share (%) of exemplars that are routed right.

    The selected candidate is the earliest one at most a point worse than the best, as later layers then need
    not run; of two that end with the same layer, it is the better one. states: (exemplar, layer, width)
    float32; beside: (exemplar, part, width), used with all candidates; rank: of the learned metric, None for
    the Euclidean one.
    """
    rows = spread_rows(len(states), _MEASURED)
    ids = torch.from_numpy(task_ids.astype(np.int64))[rows]
    shares = {}
    with one_torch_thread():
        for layers in candidates(states.shape[1] - 1):
            parts = torch.cat([beside[rows], states[rows][:, list(layers)]], 1)
            shares[layers] = _share(parts.flatten(1).double(), ids, normalise, parts.shape[1], rank)
    good = [layers for layers, share in shares.items() if share >= max(shares.values()) - _TOLERANCE]
    return min(good, key=lambda layers: (layers[-1], -shares[layers])), shares


def _share(features: Tensor, ids: Tensor, normalise: Normalisation, parts: int, rank: int | None) -> float:
    normalisation = fit_normalisation(features, normalise, parts)
    points = features if normalisation is None else normalisation.normalised(features)
    if rank is not None:
        return best_shrinkage(points, ids, rank)[1]
    identity = torch.eye(points.shape[1], dtype=points.dtype)
    return cross_validate(points, ids, lambda some, of: [identity])[0]
