"""Shares of a fine-tuned model's answers that compressed models keep, on examples no training has used."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.quality_records import four_digits
from flexswitch.codecs.threads import parallel_map
from flexswitch.merging.compression.plan import TrainingInputs
from flexswitch.merging.flex_switch.objective import joined
from flexswitch.merging.flex_switch.training_data import (
    DataSettings,
    open_training_data,
    read_training_examples,
)
from flexswitch.merging.models.adapters import get_adapter, gives_features
from flexswitch.merging.models.examples import task_file
from flexswitch.merging.task_vectors.shared_vector import artifact_vector
from flexswitch.merging.task_vectors.task_vector import TaskVector


@dataclass(frozen=True)
class HeldOutAnswers:
    """How many examples are compared, their digest, and the function that returns an artifact's share."""

    examples: int
    digest: str
    kept: Callable[[Artifact], float]


def held_out_answers(
    vector: TaskVector, task: str, inputs: TrainingInputs, learned: Mapping[str, Any] | None, jobs: int
) -> HeldOutAnswers:
    """Returns the comparison of a task's artifacts with the fine-tuned model.

    learned: the settings of the training that makes the artifacts, which compares the examples that it holds
    out; None without training, where all exemplars are compared. Raises: InputError if there are too few
    exemplars; UsageError if the model gives no answers.
    """
    if learned is None:
        settings = DataSettings(task, inputs, "kl", 0, min_exemplars=1, augmentations=0, precision="float32")
        return _measured_answers(vector, settings, jobs)
    known = ("seed", "min_exemplars", "augmentations", "precision")
    settings = DataSettings(task, inputs, learned["objective"], **{name: learned[name] for name in known})
    return _trained_answers(vector, settings)


def _trained_answers(vector: TaskVector, settings: DataSettings) -> HeldOutAnswers:
    _check_answers(vector, settings)
    exemplars, held_out = read_training_examples(settings)
    if not len(held_out):
        path, fewer = task_file(settings.inputs.exemplars, settings.task, "train"), len(exemplars) // 2
        advice = f", or train on {fewer} with --per-task {fewer}" * (fewer >= settings.min_exemplars)
        raise InputError(
            f"{path}: all {len(exemplars)} examples are used for training, and none is left to measure the "
            f"budget on; give more{advice}"
        )

    def kept(artifact: Artifact) -> float:
        training = artifact.header.training
        if training is None or training.after.held_out_agreement is None:
            raise ValueError("an artifact that was trained lacks the record of its held-out examples")
        return training.after.held_out_agreement

    return HeldOutAnswers(len(held_out), exemplars.digest() + held_out.digest(), kept)


def _measured_answers(vector: TaskVector, settings: DataSettings, jobs: int) -> HeldOutAnswers:
    _check_answers(vector, settings)
    base = settings.inputs.base
    with parallel_map(jobs) as in_parallel:
        data = open_training_data(vector, settings, in_parallel)
    targets = data.exemplars if data.held_out is None else joined(data.exemplars, data.held_out)

    def kept(artifact: Artifact) -> float:
        with parallel_map(jobs) as in_parallel:
            data.load(base, artifact_vector(artifact, base))
            return four_digits(data.divergence(targets, in_parallel)[1])

    return HeldOutAnswers(len(targets), targets.examples.digest(), kept)


def _check_answers(vector: TaskVector, settings: DataSettings) -> None:
    """Raises: UsageError where models give features, which are not equal or different."""
    inputs = settings.inputs
    adapter = get_adapter(inputs.base, vector.model.adapter, inputs.adapter, inputs.max_length)
    if settings.goal == "mse" or gives_features(adapter, vector.extras):
        what = "objective=mse trains on features" if settings.goal == "mse" else "the model gives features"
        raise UsageError(f"--budget agreement: {what}, which are no answers; give a --target-size instead")
