"""Chooses the settings of a merge: a grid of values, scored on examples as `eval` scores."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flexswitch.codecs.errors import InputError, UnusedOptionError, UsageError
from flexswitch.merging.commands.merge_exemplars import Merger
from flexswitch.merging.evaluation.fixed_weights import compare_with, score_fixed
from flexswitch.merging.evaluation.scores import Score
from flexswitch.merging.evaluation.task_models import TaskModels
from flexswitch.merging.methods.settings import takes_whole_numbers
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.models.device import check_device
from flexswitch.merging.models.examples import read_exemplars
from flexswitch.merging.models.text_pairs import apart
from flexswitch.merging.static.tensor_settings import MergeSettings

_STEPS = 10  # values of a range


@dataclass(frozen=True)
class Grid:
    """Settings with the values that are tried of each, and the folder of labelled examples."""

    values: Mapping[str, Any]
    data: str | Path | None

    def check(self, given: MergeSettings, merges: bool) -> None:
        """Raises: UsageError on values that a setting does not take, and on options that do nothing."""
        if not self.values:
            if self.data is not None:
                raise UnusedOptionError(
                    ["data"], "it is for --tune; give the settings to tune, or leave it out"
                )
            return
        lacking = [] if merges else ["--method NAME"]
        lacking += ["--data DIR, a folder of labelled <task>.train files"] if self.data is None else []
        if lacking:
            raise UsageError(f"--tune: needs {' and '.join(lacking)}")
        for name in self.values:
            if name in given.values:
                raise UsageError(f"--tune {name}: it is given by --set too; keep one of them")
        for point in self.points(given):
            point.check_values()

    def points(self, given: MergeSettings) -> Iterator[MergeSettings]:
        """Yields the settings of each point, the last setting varying first. Raises: UsageError."""
        tried = [
            _values(name, value, takes_whole_numbers(given.method, name))
            for name, value in self.values.items()
        ]
        for values in itertools.product(*tried):
            yield replace(given, values={**given.values, **dict(zip(self.values, values, strict=True))})


def tuned(merger: Merger, given: MergeSettings, grid: Grid) -> tuple[MergeSettings, dict[str, Any]]:
    """Returns the settings of best mean accuracy, the first of equal ones, and the report of all points.

    Raises: InputError, UsageError.
    """
    task_models = _task_models(merger, grid)
    points, scores = list(grid.points(given)), []
    with merger.reporter.steps(f"tuning {', '.join(grid.values)}", len(points)) as on_step:
        for point in points:
            scores.append(_scored(merger, task_models, point))
            on_step(len(scores), _shown(scores[-1]))
    best = max(range(len(points)), key=lambda number: scores[number].goodness)
    rows = [
        {
            "settings": {name: point.values[name] for name in grid.values},
            "average": score.average,
            "scores": score.values,
        }
        for point, score in zip(points, scores, strict=True)
    ]
    counts = {task: len(examples) for task, examples in task_models.examples.items()}
    report = {"chosen": rows[best]["settings"], "exemplars": counts, "split": "train", "scores": rows}
    return points[best], {"tuned": report}


def _shown(score: Score) -> str:
    return f"{score.average:.2f}{' %' if score.unit == '%' else ''}"


def _task_models(merger: Merger, grid: Grid) -> TaskModels:
    options = merger.options
    if grid.data is None:
        raise ValueError("`check` refuses a grid without data")
    check_device(options.device)
    recorded = {vector.model.adapter for vector in merger.vectors.values()}
    if options.adapter is None and len(recorded) > 1:
        found = ", ".join(sorted(map(str, recorded)))
        raise InputError(f"--tune: the tasks are run by several adapters ({found}); give one with --adapter")
    adapter = get_adapter(merger.base, recorded.pop(), options.adapter, options.max_length)
    examples = {
        task: read_exemplars(Path(grid.data), task, options.per_task, 0, labelled=None)
        for task in merger.vectors
    }
    if getattr(adapter, "kind", None) == "features":
        examples = {task: apart(each) for task, each in examples.items()}
    task_models = TaskModels(merger.base, adapter, merger.vectors, examples, options.device)
    task_models.warm_up()
    compare_with(task_models, merger.vectors)
    if task_models.unit is None:
        raise InputError(
            "--tune: the tasks' metrics have different units, so that their average means nothing"
        )
    return task_models


def _scored(merger: Merger, task_models: TaskModels, point: MergeSettings) -> Score:
    outputs, _, _ = merger.outputs(point, None)
    merged = {name: output.whole() for name, output in outputs.items()}
    return score_fixed(task_models, point.method.name, lambda task: task_models.set_merged(task, merged), 0.0)


def _values(name: str, given: Any, is_whole: bool = False) -> Sequence[Any]:
    """Returns the values to try: those of a list, or ten from one number to another. Raises: UsageError.

    is_whole: of a range only whole numbers, at most ten.

    >>> _values("lambda", "0.1:1.0")[:3], _values("lambda", "0.1,0.5")
    ([0.1, 0.2, 0.3], ['0.1', '0.5'])
    >>> _values("k", "1:3", is_whole=True)
    [1, 2, 3]
    """
    if not isinstance(given, str):
        return list(given) if isinstance(given, list | tuple) else [given]
    first, colon, last = given.partition(":")
    if not colon:
        return given.split(",")
    try:
        ends = float(first), float(last)
    except ValueError:
        ends = (np.nan, np.nan)
    if not np.isfinite(ends).all():
        raise UsageError(f"--tune {name}={given}: expected FROM:TO, or values joined by commas")
    values: list[float] = np.linspace(*ends, _STEPS).tolist()
    if not is_whole:
        return [float(f"{value:.10g}") for value in values]
    if not all(end.is_integer() for end in ends):
        raise UsageError(f"--tune {name}={given}: expected whole numbers FROM:TO, or some joined by commas")
    return list(dict.fromkeys(round(value) for value in values))
