"""Settings of a merge that differ from tensor to tensor, and from task to task.

A setting's value is a number, or a list of numbers along the layers with linear steps in between. Values for
tensors whose name matches a pattern replace it, `TASK:PATTERN` those of one task.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np

from flexswitch.codecs.errors import UsageError, unknown_name
from flexswitch.merging.methods.registry import Method
from flexswitch.merging.methods.settings import (
    MOST_NUMBER,
    NUMBER_EXPECTED,
    by_task_settings,
    check_settings,
    recorded,
)

_WEIGHT = "weight"
_LAYER = re.compile(r"(?:^|\.)(\d{1,9})\.")


class Override(NamedTuple):
    """Values for the tensors that match a pattern, of all tasks or of one."""

    pattern: str
    values: Mapping[str, Any]

    @property
    def task(self) -> str | None:
        """The one task that it is for."""
        task, colon, _ = self.pattern.rpartition(":")
        return task if colon else None

    def matches(self, name: str, task: str) -> bool:
        """Returns whether it is for a tensor of a task."""
        return self.task in (None, task) and fnmatchcase(name, self.pattern.rpartition(":")[2])


@dataclass(frozen=True)
class MergeSettings:
    """A method's settings for any tensor and task.

    values: for all tensors. weights: of tasks, 1 where a task has none.
    """

    method: Method
    values: Mapping[str, Any]
    weights: Mapping[str, Any]
    overrides: Sequence[Override] = ()

    def check_values(self) -> None:
        """Raises: UsageError on unknown settings and on values out of range."""
        for values in ({_WEIGHT: 1.0, **self.values}, *(override.values for override in self.overrides)):
            for place in (0.0, 1.0):
                at_place = {key: _along(value, place) for key, value in values.items()}
                _weight("", at_place.pop(_WEIGHT, 1.0))
                check_settings(self.method, at_place)
        for task, weight in self.weights.items():
            _weight(task, weight)

    def check(self, tasks: Sequence[str], names: Sequence[str]) -> None:
        """Raises: UsageError on unknown tasks, and overrides that no tensor of these names takes."""
        self.method.check_task_count(len(tasks))
        weighted = self.weights or any(_WEIGHT in override.values for override in self.overrides)
        if weighted and not self.method.weighted:
            raise UsageError(f"--weight: {self.method.name} takes no weights of tasks")
        for task in self.weights:
            if task not in tasks:
                raise UsageError(f"--weight {task}: {unknown_name('task', task, tasks)}")
        for override in self.overrides:
            option = f"--set-for {override.pattern}"
            if override.task is not None and override.task not in tasks:
                raise UsageError(f"{option}: {unknown_name('task', override.task, tasks)}")
            if not any(override.matches(name, task) for name in names for task in tasks):
                raise UsageError(f"{option}: no tensor of the base has such a name")
            whole = sorted(override.values.keys() - by_task_settings(self.method) - {_WEIGHT})
            if override.task is not None and whole:
                raise UsageError(f"{option}: {whole[0]} of {self.method.name} is the same for all tasks")

    def arguments(
        self, name: str, tasks: Sequence[str], place: float
    ) -> tuple[dict[str, Any], tuple[float, ...]]:
        """Returns the method's arguments and the tasks' weights for a tensor.

        place: of the tensor along the layers, from 0 to 1. Raises: UsageError on a value out of range.
        """
        found = [self._of_task(name, task, place) for task in tasks]
        weights = tuple(_weight(task, each.pop(_WEIGHT)) for task, each in zip(tasks, found, strict=True))
        checked = [_checked(self.method, tuple(each.items())) for each in found]
        arguments = dict(checked[0])
        for key in by_task_settings(self.method):
            arguments[key] = tuple(each[key] for each in checked)
        return arguments, weights

    def described(self) -> list[str]:
        """Returns the options that give these settings."""
        known = {**recorded(check_settings(self.method, {})), **self.values}
        options = [f"--set {key}={_text(value)}" for key, value in known.items()]
        options += [f"--weight {task}={_text(value)}" for task, value in self.weights.items()]
        for override in self.overrides:
            options += [
                f"--set-for '{override.pattern}:{key}={_text(value)}'"
                for key, value in override.values.items()
            ]
        return options

    def _of_task(self, name: str, task: str, place: float) -> dict[str, Any]:
        values = {_WEIGHT: self.weights.get(task, 1.0), **self.values}
        for override in self.overrides:
            if override.matches(name, task):
                values.update(override.values)
        return {key: _along(value, place) for key, value in values.items()}


@functools.cache
def _checked(method: Method, values: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    return dict(check_settings(method, dict(values)))


def layer_places(names: Sequence[str]) -> dict[str, float]:
    """Returns where each tensor is along the layers, from 0 to 1.

    The layer is the first whole number in a tensor's name. A single layer is at 1, tensors outside the layers
    are at 0. Of several stacks, the last layer of the longest is at 1.
    """
    layers = {name: int(found.group(1)) for name in names if (found := _LAYER.search(name))}
    last = max(layers.values(), default=0)
    places = {name: layer / last if last else 1.0 for name, layer in layers.items()}
    return {name: places.get(name, 0.0) for name in names}


def _along(value: Any, place: float) -> Any:
    """Returns the value at a place along the layers: that of a list between its two nearest values."""
    if isinstance(value, str) and "," in value:
        value = value.split(",")
    if not isinstance(value, (list, tuple)):
        return value
    try:
        points = [float(each) for each in value]
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{','.join(map(str, value))}: expected numbers along the layers") from error
    return float(np.interp(place, np.linspace(0, 1, len(points)), points))


def _weight(task: str, value: Any) -> float:
    try:
        weight = float(value)
    except (TypeError, ValueError, OverflowError):
        weight = np.nan
    if not np.isfinite(weight):
        raise UsageError(f"--weight {task}={value}: expected a number")
    if abs(weight) > MOST_NUMBER:
        raise UsageError(f"--weight {task}={value}: {NUMBER_EXPECTED}")
    return weight


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
