"""The confusion of tasks: counts, statistics and a chart."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.atomic import atomic_file

_WRITTEN = 20  # most tasks for which the chart's cells show their counts
_DRAWN = 60  # most tasks that a chart shows


class Mistake(NamedTuple):
    """The number of one task's samples that were routed to another, and their share of the task's samples."""

    task: str
    routed: str
    times: int
    share: float


def confusion(true: NDArray[np.integer], routed: NDArray[np.integer], tasks: int) -> NDArray[np.int64]:
    """Returns the number of samples by true and routed task, (task, routed task).

    true, routed: (sample,) numbers of tasks.
    """
    counts = np.bincount(true.astype(np.int64) * tasks + routed, minlength=tasks * tasks)
    return counts.reshape(tasks, tasks).astype(np.int64)


def accuracy(counts: NDArray[np.int64]) -> float:
    """Returns the share (%) of samples that were routed to their own task; 0 if there are no samples."""
    return 100 * float(np.trace(counts)) / max(1, int(counts.sum()))


def accuracies(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns each task's share (%) of samples that were routed to it, (task,); 0 if it has none."""
    right: NDArray[np.float64] = 100 * np.diagonal(counts) / np.maximum(1, counts.sum(1))
    return right


def mistakes(counts: NDArray[np.int64], tasks: Sequence[str], most: int) -> list[Mistake]:
    """Returns up to `most` confusions, the largest first; ties are in the order of the tasks."""
    wrong = counts - np.diag(np.diagonal(counts))
    shares = wrong / np.maximum(1, counts.sum(1, keepdims=True))  # (task, routed task)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    return [
        Mistake(tasks[row], tasks[column], int(wrong[row, column]), float(shares[row, column]))
        for row, column in zip(*np.unravel_index(order, counts.shape), strict=True)
        if wrong[row, column]
    ]


def entropy(weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns the entropy of weights (sample, task) in bits, (sample,).

    >>> entropy(np.array([[1.0, 0.0], [0.5, 0.5]])).tolist()
    [0.0, 1.0]
    """
    shares = weights.astype(np.float64)
    bits: NDArray[np.float64] = -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(1) + 0.0
    return bits


def draw_confusion(counts: NDArray[np.int64], tasks: Sequence[str], path: Path, overwrite: bool) -> None:
    """Writes a PNG with a row for each task, coloured by the share of its samples routed to each task.

    If there are more than 60 tasks, it shows the 60 with the largest confusions. Raises: InputError if
    matplotlib is not installed or the output may not be written.
    """
    try:
        from matplotlib.colors import PowerNorm
        from matplotlib.figure import Figure
    except ImportError as reason:
        raise InputError(f"{path}: drawing needs matplotlib; pip install 'flexswitch[eval]'") from reason
    shown = _most_confused(counts, _DRAWN)
    written = len(shown) <= _WRITTEN
    fields = counts[np.ix_(shown, shown)]
    shares = 100 * fields / np.maximum(1, counts[shown].sum(1, keepdims=True))  # (task, routed task)
    size = 3.5 + (0.45 if written else 0.2) * len(shown)  # inches
    figure = Figure(figsize=(size + 2, size), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100))  # makes a few per cent visible
    figure.colorbar(image, ax=axes, label="share of the task's samples (%)", fraction=0.046)
    names = [tasks[number] for number in shown]
    axes.set_xticks(range(len(shown)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.set_xlabel("routed to")
    axes.set_ylabel("task")
    part = "" if len(shown) == len(tasks) else f"; the {len(shown)} most confused of {len(tasks):,} tasks"
    axes.set_title(
        f"routing accuracy {accuracy(counts):.1f} % of {counts.sum():,} samples{part}", fontsize=10
    )
    for row, column in np.argwhere(fields) if written else ():
        colour = "white" if shares[row, column] > 30 else "black"
        axes.text(column, row, fields[row, column], ha="center", va="center", fontsize=8, color=colour)
    with atomic_file(path, overwrite) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})


def _most_confused(counts: NDArray[np.int64], most: int) -> list[int]:
    """Returns up to `most` tasks with the largest confusions, in task order."""
    if len(counts) <= most:
        return list(range(len(counts)))
    both = (counts + counts.T).astype(np.float64)
    np.fill_diagonal(both, -1)
    order = np.argsort(-both.max(1), kind="stable")[:most]
    return sorted(order.tolist())
