"""Builds a zoo's query index from exemplars."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.errors import InputError, unknown_name
from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.zoo import IndexRecord, Zoo, write_zoo
from flexswitch.merging.evaluation.data import Examples, read_examples, task_file, tasks_with
from flexswitch.merging.routing.features import FeatureSource
from flexswitch.merging.routing.query_set import QuerySet, QuerySetHeader, write_query_set


def read_exemplars(zoo: Zoo, folder: Path) -> dict[str, Examples]:
    """Returns each task's training examples.

    Raises: InputError where a file is missing or empty, or belongs to a task that the zoo has not.
    """
    if not len(zoo):
        raise InputError(f"{zoo.path}: holds no tasks; add some: flexswitch pack -o {zoo.path} --add A.fsw")
    for task, path in tasks_with(folder, "train").items():
        if task not in zoo.record.tasks:
            raise InputError(
                f"{path}: in {zoo.path} {unknown_name('task', task, zoo)}; pack it, or move the file away"
            )
    files = {task: task_file(folder, task, "train") for task in zoo}
    return {task: read_examples(path, labelled=False) for task, path in files.items()}


def build_index(
    zoo: Zoo,
    examples: Mapping[str, Examples],
    per_task: int,
    seed: int,
    source: FeatureSource,
    on_task: Callable[[str], None],
) -> tuple[IndexRecord, list[str]]:
    """Stores the features of `per_task` exemplars a task; returns the record and what the user should know.

    A task with fewer examples gives them all. Raises: InputError.
    """
    features, task_ids, notes = [], [], []
    for number, (task, each) in enumerate(examples.items()):
        on_task(task)
        rows = draw(len(each), per_task, seed, task)
        if len(rows) < per_task:
            notes.append(
                f"task '{task}' has {len(rows)} examples, fewer than the {per_task} asked for; all are used"
            )
        features.append(source.rows(task, "train", each, rows).numpy())
        _check_features(task, features)
        task_ids.append(np.full(len(rows), number, np.int32))
    header = QuerySetHeader(tasks=list(examples), features=source.kind, per_task=per_task, seed=seed)
    query_set = QuerySet(header, np.concatenate(features), np.concatenate(task_ids))
    record = write_query_set(zoo.path, query_set)
    write_zoo(zoo.path, zoo.record.model_copy(update={"index": record}))
    return record, notes


def _check_features(task: str, features: Sequence[FloatArray]) -> None:
    """Checks the features of the task added last. Raises: InputError."""
    width, expected = features[-1].shape[1], features[0].shape[1]
    if width != expected:
        raise InputError(
            f"the features of '{task}' have the width {width}, those of the first task {expected}"
        )
    if not np.isfinite(features[-1]).all():
        raise InputError(
            f"the features of '{task}' are not finite; its exemplars can't be searched by distance"
        )


def draw(available: int, wanted: int, seed: int, task: str) -> NDArray[np.int64]:
    """Returns sorted rows, drawn without repetition; the same for a seed and task whatever else is drawn."""
    digest = hashlib.sha256(f"{seed}/{task}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
    return np.sort(generator.permutation(available)[:wanted]).astype(np.int64)
