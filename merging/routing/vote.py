"""Weights of tasks from the nearest exemplars: each has a vote, or the nearer ones have more of it."""

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.errors import UsageError, unknown_name

VOTES = ("uniform", "kernel")

_SHARPNESS = 2.0  # the last neighbour's vote is worth exp(-2) of the first one's


def check_vote(vote: str) -> None:
    """Raises: UsageError on a kind that is not known."""
    if vote not in VOTES:
        raise UsageError(f"--vote: {unknown_name('vote', vote, VOTES)}")


def votes(
    distances: NDArray[np.float64], task_ids: NDArray[np.int32], tasks: int, vote: str
) -> NDArray[np.float64]:
    """Returns weights (sample, task) that sum to 1.

    distances, task_ids: (sample, neighbour), the nearest first.
    "uniform": the share of the neighbours that are the task's (docs/methods.md §3).
    "kernel": a neighbour at distance d counts exp(-c (d² - d₁²) / (d_K² - d₁²)), d₁ the nearest one's and
    d_K the last one's, whatever the scale of distances.
    Raises: UsageError on another kind.
    """
    check_vote(vote)
    shares = np.ones_like(distances) if vote == "uniform" else _kernel(distances)  # (sample, neighbour)
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


def _kernel(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns what each neighbour's vote is worth, (sample, neighbour), the nearest one's 1."""
    beyond = np.square(distances) - np.square(distances[:, :1])
    last = beyond[:, -1:]
    return np.exp(-_SHARPNESS * beyond / np.where(last > 0, last, 1))
