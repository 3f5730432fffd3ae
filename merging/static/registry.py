"""The static merge methods by name; adding one is its file, its line here and a test."""

from collections.abc import Callable

from torch import Tensor

from flexswitch.codecs.errors import UsageError, unknown_name
from flexswitch.merging.static.average import average
from flexswitch.merging.static.task_arithmetic import task_arithmetic

MERGES: dict[str, Callable[..., Tensor]] = {
    "average": average,
    "task-arithmetic": task_arithmetic,
}


def get_merge(name: str) -> Callable[..., Tensor]:
    """Returns the merge method of that name. Raises: UsageError."""
    if name not in MERGES:
        raise UsageError(unknown_name("merge method", name, MERGES))
    return MERGES[name]
