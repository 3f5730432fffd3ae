"""Scores methods that use the same weights for all samples of a task."""

import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from flexswitch.merging.evaluation.scores import Score
from flexswitch.merging.evaluation.task_models import TaskModels
from flexswitch.merging.models.examples import Batch, labels_of


def score_fixed(
    task_models: TaskModels, method: str, prepare: Callable[[str], None], bytes_per_task: float
) -> Score:
    """Returns the score of a method; `prepare` loads its weights into a task's model and is not timed."""
    accuracy, seconds, count = {}, 0.0, 0
    for task in task_models.vectors:
        prepare(task)
        labels = labels_of(task_models.examples[task])
        started = time.perf_counter()
        correct = 0
        for rows, batch in task_models.batches(task):
            correct += int((_predict(task_models, task, batch) == labels[rows]).sum())
        seconds += time.perf_counter() - started
        count += len(labels)
        accuracy[task] = 100 * correct / len(labels)
    return Score(method, accuracy, bytes_per_task, seconds / count)


def _predict(task_models: TaskModels, task: str, batch: Batch) -> NDArray[np.int64]:
    with torch.inference_mode():
        logits = task_models.adapter.logits(task_models.models[task], batch)
    predicted: NDArray[np.int64] = logits.argmax(-1).cpu().numpy()
    return predicted
