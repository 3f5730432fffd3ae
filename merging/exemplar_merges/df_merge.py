"""DF-Merge: Fisher-weighted task vectors, their scales found by Bayesian optimisation of the accuracy.

Source: Lee et al. 2025, "Dynamic Fisher-weighted Model Merging via Bayesian Optimization" (arXiv 2504.18992);
docs/methods.md §6.8.
"""

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from flexswitch.codecs.format.training_file import Arrays
from flexswitch.merging.exemplar_merges.bayesian_search import next_point
from flexswitch.merging.exemplar_merges.fisher_information import fisher_information
from flexswitch.merging.exemplar_merges.inputs import Learned, MergeInputs
from flexswitch.merging.exemplar_merges.shared_models import SharedModels
from flexswitch.merging.exemplar_merges.task_module import TaskModule
from flexswitch.merging.exemplar_merges.weighted_average import WeightedAverage

Doubles = NDArray[np.float64]


def df_merge(
    inputs: MergeInputs,
    *,
    points: Annotated[int, Field(ge=1, description="Random points of the search.")] = 10,
    steps: Annotated[int, Field(ge=0, description="Points that the search chooses after these.")] = 50,
    fisher_exemplars: Annotated[
        int, Field(ge=1, description="Examples of each task for its Fisher information.")
    ] = 30,
    floor: Annotated[float, Field(gt=0, description="What is added to the Fisher information.")] = 1e-12,
    seed: Annotated[int, Field(ge=0, description="Seed of the random points.")] = 0,
) -> Learned:
    """Returns θ + K · Σ_k λ_k F_k τ_k / Σ_k F_k at the scales λ of best mean accuracy on the examples.

    F_k is the Fisher information of θ + λ_k τ_k.
    """
    models, tasks = SharedModels(inputs), inputs.model.tasks
    file, total = inputs.training, points + steps
    stored = None if file is None else file.read(_check)
    tried = np.zeros((0, len(tasks))) if stored is None else stored["points"]
    scores = np.zeros(0) if stored is None else stored["scores"]
    with inputs.steps("accuracy", total) as on_step:
        while len(tried) < total:
            point = next_point(tried, scores, points, seed)
            _write(models, _averaged(inputs, point, fisher_exemplars, floor), inputs)
            tried, scores = np.vstack([tried, point]), np.append(scores, models.accuracy())
            on_step(len(tried), f"accuracy {scores[-1]:.2f} %, best {scores.max():.2f} %")
            if file is not None:
                file.write(len(tried), lambda: {"points": tried, "scores": scores})  # noqa: B023
    best = int(scores.argmax())
    average = _averaged(inputs, tried[best], fisher_exemplars, floor)
    report = {
        "accuracy": float(scores[best]),
        "scales": dict(zip(tasks, tried[best].tolist(), strict=True)),
    }
    return Learned(dict.fromkeys(inputs.model.names, average.combine), inputs.report | report)


def _averaged(inputs: MergeInputs, scales: Doubles, count: int, floor: float) -> WeightedAverage:
    average, number = WeightedAverage(inputs.model), len(inputs.model.tasks)
    for task, scale in enumerate(scales.tolist()):
        examples = inputs.examples[inputs.model.tasks[task]]
        chosen = examples.take(np.arange(min(count, len(examples))))
        module = TaskModule(inputs, task, scale)
        information = fisher_information(inputs, module, chosen, "exact", lambda done: None)
        average.add(task, information, floor, scale=scale * number)
    return average


def _write(models: SharedModels, average: WeightedAverage, inputs: MergeInputs) -> None:
    """Sets the models' weights to the base's plus the average."""
    base = inputs.model.base
    for name, weights in models.weights.items():
        merged = base.read(name).to(weights.dtype).reshape(-1) + average.delta(name)
        weights.copy_(merged.reshape(weights.shape))


def _check(stored: Arrays) -> None:
    if {"points", "scores"} - set(stored):
        raise ValueError("it lacks the points of the search")
