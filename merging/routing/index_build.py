"""Builds a zoo's query index from exemplars, and adds tasks to it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.index_record import IndexRecord, RoutingAccuracy
from flexswitch.codecs.format.zoo import Zoo
from flexswitch.codecs.format.zoo_writer import ZooWriter
from flexswitch.merging.models.examples import Examples, read_exemplars
from flexswitch.merging.models.feature_spec import FROM_FILE, is_auto, layers_spec, parse_feature_spec
from flexswitch.merging.routing.cross_validation import FOLDS
from flexswitch.merging.routing.features import FeatureSource
from flexswitch.merging.routing.index_options import IndexOptions
from flexswitch.merging.routing.layer_selection import select_layers
from flexswitch.merging.routing.metric import learn_metric
from flexswitch.merging.routing.projection import Projection, fit_normalisation
from flexswitch.merging.routing.query_set import QuerySet, QuerySetHeader, write_query_set


class ExemplarFeatures(NamedTuple):
    """features: (exemplar, width) float32; task_ids: (exemplar,), indices into tasks."""

    tasks: list[str]
    features: Tensor
    task_ids: NDArray[np.int32]


def exemplars_of(
    zoo: Zoo, folder: Path, per_task: int, seed: int, tasks: Collection[str] | None = None
) -> dict[str, Examples]:
    """Returns the exemplars drawn for all tasks, or for the given ones.

    Raises: InputError if the zoo has no tasks, or a file is missing or empty.
    """
    if not len(zoo):
        raise InputError(f"{zoo.path}: holds no tasks; add some: flexswitch pack -o {zoo.path} --add A.fsw")
    wanted = [task for task in zoo if tasks is None or task in tasks]
    return {task: read_exemplars(folder, task, per_task, seed) for task in wanted}


def build_index(
    zoo: Zoo,
    examples: Mapping[str, Examples],
    options: IndexOptions,
    source: FeatureSource,
    on_task: Callable[[str], None],
    writer: ZooWriter,
) -> tuple[IndexRecord, list[str]]:
    """Stores the points of the tasks' exemplars; returns the record and notes for the user.

    With the features "auto", the source returns the
    features of all layers, and those of the layers that route best are stored. Raises: InputError.
    """
    exemplars, notes = exemplar_features(examples, options.per_task, source, on_task)
    spec = source.spec
    if is_auto(options.features) and spec != "pooled":  # of a model without layers of its own
        spec, exemplars, note = _chosen(exemplars, spec, options)
        notes.append(note)
    parts = 1 if spec == FROM_FILE else parse_feature_spec(spec).parts
    projection, accuracy, learned = _projection(exemplars, parts, options)
    notes += learned
    header = QuerySetHeader(
        tasks=exemplars.tasks,
        features=spec,
        dtype=source.dtype,
        parts=parts,
        averaged=list(zoo) if spec != FROM_FILE and parse_feature_spec(spec).averaged else None,
        accuracy=accuracy,
        per_task=options.per_task,
        seed=options.seed,
    )
    points = (exemplars.features if projection is None else projection(exemplars.features)).numpy()
    record = write_query_set(writer, QuerySet(header, points, exemplars.task_ids, projection))
    writer.commit(zoo.record.model_copy(update={"index": record}))
    return record, notes


def extend_index(
    zoo: Zoo,
    query_set: QuerySet,
    examples: Mapping[str, Examples],
    source: FeatureSource,
    on_task: Callable[[str], None],
    writer: ZooWriter,
) -> tuple[IndexRecord, list[str]]:
    """Adds the exemplars of tasks that an index lacks, and changes nothing else in it.

    Returns the record and notes for the user. Raises: InputError.
    """
    header, projection = query_set.header, query_set.projection
    found, notes = exemplar_features(examples, header.per_task, source, on_task)
    if projection is None and found.features.shape[1] != query_set.points.shape[1]:
        raise InputError(
            f"the features have the width {found.features.shape[1]}, the query index has points of width "
            f"{query_set.points.shape[1]}"
        )
    points = (found.features if projection is None else projection(found.features)).numpy()
    if projection is not None and projection.metric is not None:
        notes.append(
            f"the metric was learned without {', '.join(found.tasks)}; `flexswitch index {zoo.path} "
            "--overwrite` learns it from all tasks"
        )
    grown = QuerySet(
        header.model_copy(update={"tasks": [*header.tasks, *found.tasks]}),
        np.concatenate([query_set.points, points]),
        np.concatenate([query_set.task_ids, found.task_ids + np.int32(len(header.tasks))]),
        projection,
    )
    record = write_query_set(writer, grown)
    writer.commit(zoo.record.model_copy(update={"index": record}))
    return record, notes


def exemplar_features(
    examples: Mapping[str, Examples],
    per_task: int,
    source: FeatureSource,
    on_task: Callable[[str], None],
) -> tuple[ExemplarFeatures, list[str]]:
    """Returns the features of tasks' exemplars, and notes on tasks with fewer than `per_task`.

    Raises: InputError if features differ in width or are not finite.
    """
    features: list[Tensor] = []
    task_ids, notes = [], []
    for number, (task, each) in enumerate(examples.items()):
        on_task(task)
        if len(each) < per_task:
            notes.append(
                f"task '{task}' has {len(each)} examples, fewer than the {per_task} asked for; all are used"
            )
        features.append(source.exemplars(task, each, np.arange(len(each))))
        _check_features(task, features)
        task_ids.append(np.full(len(each), number, np.int32))
    return ExemplarFeatures(list(examples), torch.cat(features), np.concatenate(task_ids)), notes


def _chosen(
    exemplars: ExemplarFeatures, spec: str, options: IndexOptions
) -> tuple[str, ExemplarFeatures, str]:
    """Returns the spec of the layers that route best, the features of those layers, and a note."""
    counts = np.bincount(exemplars.task_ids)
    if counts.min() < FOLDS:
        raise InputError(
            f"--features auto: task '{exemplars.tasks[int(counts.argmin())]}' has {counts.min()} exemplars, "
            f"and choosing layers needs {FOLDS} per task; give more, or name a layer: --features layer:N"
        )
    every = parse_feature_spec(spec)
    parts = exemplars.features.reshape(len(exemplars.features), every.parts, -1)  # (exemplar, part, width)
    beside, states = parts[:, : every.shaped], parts[:, every.shaped :]
    layers, shares = select_layers(
        states, beside, exemplars.task_ids, options.normalise, options.learned_rank
    )
    taken, best = (
        layers_spec(each, every.shaped) for each in (layers, max(shares, key=lambda each: shares[each]))
    )
    note = (
        f"--features auto takes {taken}, which routes {shares[layers]:.1f} % of held-out "
        f"exemplars to their task; the best is {best}, {max(shares.values()):.1f} %"
    )
    features = torch.cat([beside, states[:, list(layers)]], 1).flatten(1)
    return taken, exemplars._replace(features=features), note


def _projection(
    exemplars: ExemplarFeatures, parts: int, options: IndexOptions
) -> tuple[Projection | None, RoutingAccuracy | None, list[str]]:
    """Returns the projection, its accuracy if a metric was learned, and notes."""
    features = exemplars.features.double()
    fitted = fit_normalisation(features, options.normalise, parts)
    if options.learned_rank is None:
        return fitted, None, []
    normalised = features if fitted is None else fitted.normalised(features)
    learned = learn_metric(normalised, exemplars.task_ids, options.learned_rank)
    if learned.metric is None:
        return fitted, learned.accuracy, [f"the Euclidean metric is kept: {learned.reason}"]
    return replace(fitted or Projection(parts), metric=learned.metric), learned.accuracy, []


def _check_features(task: str, features: Sequence[Tensor]) -> None:
    """Checks the last task's features against those of the first. Raises: InputError."""
    width, expected = features[-1].shape[1], features[0].shape[1]
    if width != expected:
        raise InputError(
            f"the features of '{task}' have the width {width}, those of the first task {expected}"
        )
    if not features[-1].isfinite().all():
        raise InputError(
            f"the features of '{task}' are not finite; its exemplars can't be searched by distance"
        )
