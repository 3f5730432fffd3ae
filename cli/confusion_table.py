"""The confusion of tasks as a table and as a JSON document."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flexswitch.cli.console import percent, table
from flexswitch.cli.table import Table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_ROWS = 20  # tasks that the table shows at most
_NAMED = 5  # largest confusions that are named


def confusion_parts(counts: "NDArray[np.int64]", tasks: Sequence[str]) -> list[Table | str]:
    """Returns the table of counts (task, routed task), and lines on the largest confusions."""
    from flexswitch.merging.routing.confusion import accuracy, mistakes

    made = _matrix(counts, tasks) if len(tasks) <= _MOST_ROWS else _worst_rows(counts, tasks)
    lines = [f"{accuracy(counts):.1f} % of {counts.sum():,} lead to their own task"]
    if len(tasks) > _MOST_ROWS:
        lines[0] += f"; shown are the {_MOST_ROWS} worst of {len(tasks):,} tasks"
    named = [
        f"{each.task} taken for {each.routed} {each.times} times ({percent(each.share, 0)})"
        for each in mistakes(counts, tasks, _NAMED)
    ]
    if named:
        lines.append("largest confusions: " + ", ".join(named))
    return [made, *lines]


def confusion_document(counts: "NDArray[np.int64]", tasks: Sequence[str]) -> dict[str, Any]:
    """Returns the counts for `--json`; `confusion` has a row for each task, a column for each routed task."""
    from flexswitch.merging.routing.confusion import accuracies, accuracy

    return {
        "tasks": list(tasks),
        "accuracy": accuracy(counts),
        "accuracies": dict(zip(tasks, accuracies(counts).tolist(), strict=True)),
        "confusion": counts.tolist(),
    }


def _matrix(counts: "NDArray[np.int64]", tasks: Sequence[str]) -> Table:
    from flexswitch.merging.routing.confusion import accuracies

    rows = table("confusion", "task", *tasks, "right")
    for task, row, right in zip(tasks, counts.tolist(), accuracies(counts), strict=True):
        rows.add_row(task, *(str(count) if count else "·" for count in row), f"{right:.0f} %")
    return rows


def _worst_rows(counts: "NDArray[np.int64]", tasks: Sequence[str]) -> Table:
    import numpy as np

    from flexswitch.merging.routing.confusion import accuracies

    right = accuracies(counts)
    rows = table("confusion", "task", "taken for", "samples", "right", left=2)
    for number in np.argsort(right, kind="stable")[:_MOST_ROWS]:
        wrong = counts[number].copy()
        wrong[number] = 0
        order = [other for other in np.argsort(-wrong, kind="stable")[:3] if wrong[other]]
        taken = ", ".join(f"{tasks[other]} {wrong[other]}" for other in order)
        rows.add_row(tasks[number], taken, f"{counts[number].sum():,}", f"{right[number]:.0f} %")
    return rows
