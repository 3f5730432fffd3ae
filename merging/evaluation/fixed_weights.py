"""Scores methods that use the same weights for all samples of a task."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flexswitch.codecs.errors import InputError
from flexswitch.merging.evaluation.scores import Score
from flexswitch.merging.evaluation.task_models import TaskModels
from flexswitch.merging.models.examples import Batch
from flexswitch.merging.models.language_adapters import LanguageModel
from flexswitch.merging.task_vectors.task_vector import TaskVector


def score_fixed(
    task_models: TaskModels, method: str, prepare: Callable[[str], None], bytes_per_task: float
) -> Score:
    """Returns the score of a method; `prepare` loads its weights into a task's model and is not timed."""
    values, seconds, count = {}, 0.0, 0
    for task, measure in task_models.measures.items():
        prepare(task)
        started = time.perf_counter()
        answers = _all_answers(task_models, task)
        seconds += time.perf_counter() - started
        count += len(answers)
        values[task] = measure.score(answers)
    return Score(method, values, bytes_per_task, seconds / count, unit=task_models.unit)


def compare_with(task_models: TaskModels, finetuned: Mapping[str, TaskVector]) -> None:
    """Gives the measures that need them the answers of the fine-tuned models as labels.

    Raises: InputError where a task has no fine-tuned model.
    """
    for task, measure in task_models.measures.items():
        if not measure.metric.relative:
            continue
        if task not in finetuned:
            pairs = ", or examples with text, text_pair and label" if measure.kind == "features" else ""
            raise InputError(
                f"{task_models.vectors[task].source}: the {measure.metric.name} is measured against the "
                f"fine-tuned model; give --finetuned {task}=CHECKPOINT, for every task{pairs}"
            )
        task_models.set_weights(task, finetuned[task])
        task_models.measures[task] = replace(measure, labels=_all_answers(task_models, task))


def _all_answers(task_models: TaskModels, task: str) -> list[Any]:
    """Returns the answers of a task's model as it is, to all of the task's examples."""
    answers, rows = list[Any](), []
    for own, batch in task_models.batches(task):
        answers += _answers(task_models, task, own, batch)
        rows.append(own)
    return [answers[place] for place in np.argsort(np.concatenate(rows))]


def _answers(task_models: TaskModels, task: str, rows: NDArray[np.int64], batch: Batch) -> list[Any]:
    adapter, inputs = task_models.adapter, task_models.examples[task].take(rows).inputs
    measure, model = task_models.measures[task], task_models.models[task]
    with torch.inference_mode():
        if measure.metric.generated and isinstance(adapter, LanguageModel):
            return adapter.generated(getattr(model, "generate"), inputs, task_models.device)  # noqa: B009
        logits = adapter.logits(model, batch)
    return measure.answers(adapter, logits, batch, inputs)
