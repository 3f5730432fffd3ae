"""Weights of tasks from the nearest exemplars: each has a vote, or the nearer ones have more of it."""

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.errors import UsageError, unknown_name

VOTES = ("uniform", "kernel")

_SHARPNESS = 2.0  # the last neighbour's vote is worth exp(-2) of the first one's
_SAME = 1e-6  # shares are thirds and tenths in float32


def check_vote(kind: str) -> None:
    """Raises: UsageError on a kind that is not known."""
    if kind not in VOTES:
        raise UsageError(f"--vote: {unknown_name('vote', kind, VOTES)}")


def check_snap(within: float) -> None:
    """Raises: UsageError where weights can't be snapped within that."""
    if not 0 <= within < 0.5:
        raise UsageError(f"--snap {within}: expected a share from 0 to below 0.5")


def votes(
    distances: NDArray[np.float64], task_ids: NDArray[np.int32], tasks: int, kind: str
) -> NDArray[np.float64]:
    """Returns weights (sample, task) that sum to 1.

    distances, task_ids: (sample, neighbour), the nearest first.
    "uniform": the share of the neighbours that are the task's (methods, §3).
    "kernel": a neighbour at distance d counts exp(-c (d² - d₁²) / (d_K² - d₁²)), d₁ the nearest one's and
    d_K the last one's, whatever the scale of distances.
    Raises: UsageError on another kind.
    """
    check_vote(kind)
    shares = np.ones_like(distances) if kind == "uniform" else _kernel(distances)  # (sample, neighbour)
    weights = np.zeros((len(distances), tasks))
    for neighbour in range(distances.shape[1]):
        weights[np.arange(len(weights)), task_ids[:, neighbour]] += shares[:, neighbour]
    weights /= weights.sum(1, keepdims=True)
    return weights


def leading_tasks(weights: NDArray[np.float64], task_ids: NDArray[np.int32]) -> NDArray[np.int64]:
    """Returns the task of the largest weight, (sample,); of equal ones that with the nearer exemplar.

    weights: (sample, task); task_ids: (sample, neighbour), the nearest first.
    """
    rows = np.arange(len(weights))
    winners = weights[rows[:, None], task_ids] == weights.max(1, keepdims=True)  # (sample, neighbour)
    leading: NDArray[np.int64] = task_ids[rows, winners.argmax(1)].astype(np.int64)
    return leading


def snap(weights: NDArray[np.float32], within: float) -> NDArray[np.float32]:
    """Returns weights (sample, task) without the shares of at most `within`, the others scaled to sum to 1.

    So a row whose largest share is at least 1 - within becomes one-hot. The largest is always kept, and so is
    what equals it. Raises: UsageError where `within` is not from 0 to below 0.5.

    >>> snap(np.array([[0.96, 0.04], [0.7, 0.3]], np.float32), 0.05).tolist()
    [[1.0, 0.0], [0.699999988079071, 0.30000001192092896]]
    """
    check_snap(within)
    largest = weights.max(1, keepdims=True)
    dropped = (weights <= within + _SAME) & (weights < largest)
    kept = np.where(dropped, np.float32(0), weights)
    scaled = kept / kept.sum(1, keepdims=True, dtype=np.float64)
    changed = dropped & (weights > 0)
    return np.where(changed.any(1, keepdims=True), scaled, weights).astype(np.float32)


def _kernel(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns what each neighbour's vote is worth, (sample, neighbour), the nearest one's 1."""
    beyond = np.square(distances) - np.square(distances[:, :1])
    last = beyond[:, -1:]
    return np.exp(-_SHARPNESS * beyond / np.where(last > 0, last, 1))
