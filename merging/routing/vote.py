"""Weights of tasks from the votes of the nearest exemplars, which are equal or larger for nearer ones."""

import numpy as np
from numpy.typing import NDArray

VOTES = ("uniform", "kernel")

_SHARPNESS = 2.0  # the last neighbour's vote counts exp(-2) times the first one's


def votes(
    distances: NDArray[np.float64], task_ids: NDArray[np.int32], tasks: int, vote: str
) -> NDArray[np.float64]:
    """Returns weights (sample, task) that sum to 1.

    distances, task_ids: (sample, neighbour), the nearest first.
    "uniform": a task's weight is its share of the neighbours (docs/methods.md §3).
    "kernel": a neighbour at distance d counts exp(-c (d² - d₁²) / (d_K² - d₁²)), where d₁ is the distance of
    the nearest neighbour and d_K that of the last one. The scale of the distances has no influence.
    """
    shares = np.ones_like(distances) if vote == "uniform" else _kernel(distances)  # (sample, neighbour)
    weights = np.zeros((len(distances), tasks))
    for neighbour in range(distances.shape[1]):
        weights[np.arange(len(weights)), task_ids[:, neighbour]] += shares[:, neighbour]
    weights /= weights.sum(1, keepdims=True)
    return weights


def leading_tasks(weights: NDArray[np.float64], task_ids: NDArray[np.int32]) -> NDArray[np.int64]:
    """Returns the task of the largest weight, (sample,); ties go to the task with the nearer exemplar.

    weights: (sample, task); task_ids: (sample, neighbour), the nearest first.
    """
    rows = np.arange(len(weights))
    winners = weights[rows[:, None], task_ids] == weights.max(1, keepdims=True)  # (sample, neighbour)
    leading: NDArray[np.int64] = task_ids[rows, winners.argmax(1)].astype(np.int64)
    return leading


def _kernel(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the value of each neighbour's vote, (sample, neighbour); the nearest one has 1."""
    beyond = np.square(distances) - np.square(distances[:, :1])
    last = beyond[:, -1:]
    return np.exp(-_SHARPNESS * beyond / np.where(last > 0, last, 1))
