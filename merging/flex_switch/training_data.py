"""Training data: the model, the exemplars with the fine-tuned model's answers, and the batches."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.extra_forms import PackedExtra
from flexswitch.codecs.threads import ParallelMap
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.config import read_config
from flexswitch.merging.checkpoints.fingerprint import check_base
from flexswitch.merging.compression.delta import Compressed
from flexswitch.merging.compression.plan import TrainingInputs
from flexswitch.merging.flex_switch.augmentation import augment
from flexswitch.merging.flex_switch.gated_model import Loss
from flexswitch.merging.flex_switch.objective import (
    Goal,
    Objective,
    Precision,
    Targets,
    answers_of,
    joined,
)
from flexswitch.merging.flex_switch.trained_model import load_model, places_of, untrained_model
from flexswitch.merging.flex_switch.weight_decay import MultipleVector
from flexswitch.merging.models.adapters import get_adapter, kind_of
from flexswitch.merging.models.device import check_device
from flexswitch.merging.models.examples import Examples, draw, read_exemplars, task_file
from flexswitch.merging.models.fused_tensors import Place
from flexswitch.merging.models.labels import checked_labels
from flexswitch.merging.models.outputs import OutputKind
from flexswitch.merging.models.streamed_linear import UsedDirectlyError, check_uses
from flexswitch.merging.task_vectors.task_vector import TaskVector

_ANSWERED_TOGETHER = 25
_TOGETHER = 4  # texts of a step that are computed together
_MOST_HELD_OUT = 100


@dataclass(frozen=True)
class DataSettings:
    """Where a task's examples are and how they are used.

    augmentations: augmented inputs per exemplar. streamed: whether weights are made for each use, where the
    model allows it, and not held.
    """

    task: str
    inputs: TrainingInputs
    goal: Goal
    seed: int
    min_exemplars: int
    augmentations: int
    precision: Precision
    streamed: bool = False


@dataclass(frozen=True, eq=False)
class TrainingData:
    """model: holds the base's weights and their multiples. places: tensor → its place in the model.

    held_out: not trained on.
    """

    objective: Objective
    model: nn.Module
    places: dict[str, Place]
    exemplars: Targets
    augmented: Targets | None
    held_out: Targets | None
    digest: str

    def load(self, base: Checkpoint, vector: TaskVector) -> None:
        """Loads the weights of base plus task vector, and its own tensors, into the model."""
        load_model(self.objective, self.model, base, vector, 1.0)

    def losses(self, rows: Sequence[int], shards: int) -> list[Loss]:
        """Returns the losses of parts of a batch, weighted so that they sum to the batch's mean loss.

        Parts of texts have a few of similar length, the longest first; there are `shards` parts or more.
        """
        ordered = self.training_set.examples.by_length(np.asarray(sorted(rows), np.int64))[::-1].tolist()
        most = len(ordered) // shards
        size = max(
            1, most if isinstance(self.training_set.examples.inputs, np.ndarray) else min(_TOGETHER, most)
        )
        parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        return [self._loss(part, len(part) / len(ordered)) for part in parts]

    @cached_property
    def training_set(self) -> Targets:
        """The exemplars, followed by the inputs augmented from them."""
        return self.exemplars if self.augmented is None else joined(self.exemplars, self.augmented)

    def _loss(self, rows: list[int], weight: float) -> Loss:
        def loss(model: nn.Module) -> Tensor:
            batch = self.objective.batch(self.training_set.examples, rows)
            with self.objective.precise():
                found = self.objective.outputs(model, batch)
            return weight * self.objective.loss(found, self.training_set, rows, batch)

        return loss

    def loss(self, parallel_map: ParallelMap) -> float:
        """Returns the model's mean loss on the exemplars."""
        parts = _parts(self.exemplars.examples)

        def score(number: int) -> float:
            rows = parts[number]
            batch = self.objective.batch(self.exemplars.examples, rows)
            with torch.inference_mode():
                found = self.objective.outputs(self.model, batch)
                return len(rows) * float(self.objective.loss(found, self.exemplars, rows, batch))

        return sum(parallel_map(score, len(parts))) / len(self.exemplars)

    def divergence(self, targets: Targets, parallel_map: ParallelMap) -> tuple[float, float]:
        """Returns the mean divergence from the fine-tuned model, and the share of equal answers."""
        parts = _parts(targets.examples)

        def score(number: int) -> tuple[float, int, int]:
            rows = parts[number]
            batch = self.objective.batch(targets.examples, rows)
            with torch.inference_mode():
                found = self.objective.outputs(self.model, batch)
                value = float(self.objective.divergence(found, targets, rows, batch))
                same, count = self.objective.agreement(found, targets, rows, batch)
            return value * len(rows), same, count

        scores = parallel_map(score, len(parts))
        count = sum(score[2] for score in scores)
        return (
            sum(score[0] for score in scores) / len(targets),
            sum(score[1] for score in scores) / count if count else 1.0,
        )


def read_training_examples(settings: DataSettings) -> tuple[Examples, Examples]:
    """Returns a task's exemplars, those that `index` draws too, and at most as many held-out examples.

    Raises: InputError if there are fewer exemplars than `min_exemplars`, UsageError.
    """
    inputs, task, seed = settings.inputs, settings.task, settings.seed
    check_device(inputs.device)
    most = inputs.per_task + min(inputs.per_task, _MOST_HELD_OUT)
    drawn = read_exemplars(inputs.exemplars, task, most, seed, labelled=settings.goal == "task")
    count = min(drawn.available, inputs.per_task)
    if count < settings.min_exemplars:
        path = task_file(inputs.exemplars, task, "train")
        raise InputError(
            f"{path}: {count} exemplars, expected {settings.min_exemplars} or more; give more, or allow "
            f"fewer with --set min_exemplars={count}, or use none with --set objective=none"
        )
    rows = drawn.file_rows(np.arange(len(drawn)))
    trained = np.isin(rows, draw(drawn.available, inputs.per_task, seed, task))
    return drawn.take(np.flatnonzero(trained)), drawn.take(np.flatnonzero(~trained))


def open_training_data(
    vector: TaskVector,
    settings: DataSettings,
    parallel_map: ParallelMap,
    extras: Mapping[str, PackedExtra] | None = None,
    factors: Mapping[str, float] = MappingProxyType({}),
    given: Mapping[str, Compressed] = MappingProxyType({}),
) -> TrainingData:
    """Returns a task's training data, with the fine-tuned model's answers.

    extras: the task's own tensors as they are stored, which the trained model has. factors: tensor → the
    multiple of the base's weights that it has beside them. given: tensor → the part of it that is settled.

    Raises: InputError if there are fewer exemplars than `min_exemplars` or a file is missing; UsageError.
    """
    held: set[str] = set()
    while True:
        try:
            return _opened(vector, settings, parallel_map, extras, factors, given, held)
        except UsedDirectlyError as reason:
            held.update(reason.names)


def _opened(
    vector: TaskVector,
    settings: DataSettings,
    parallel_map: ParallelMap,
    extras: Mapping[str, PackedExtra] | None,
    factors: Mapping[str, float],
    given: Mapping[str, Compressed],
    held: Collection[str],
) -> TrainingData:
    """Returns the training data; see `open_training_data`. held: the weights that are not streamed."""
    inputs, goal, seed = settings.inputs, settings.goal, settings.seed
    check_base(inputs.base, vector.identity(), vector.source)
    exemplars, held_out = read_training_examples(settings)
    adapter = get_adapter(inputs.base, vector.model.adapter, inputs.adapter, inputs.max_length)
    objective = Objective(goal, adapter, inputs.device, settings.precision)
    model = untrained_model(objective, vector, inputs.base if settings.streamed else None, held)
    places = places_of(objective, vector, model)
    load_model(objective, model, inputs.base, vector, 1.0)
    if inputs.device != "cpu":
        model.to(inputs.device)
    longest = exemplars.by_length(np.arange(len(exemplars)))[-1:].tolist()
    check_uses(model, lambda own: objective.outputs(own, objective.batch(exemplars, longest)))
    config = read_config(inputs.base) | vector.model.config

    def kind(logits: Tensor) -> OutputKind:
        return kind_of(adapter, config, vector.extras, logits)

    def answered(examples: Examples) -> Targets:
        return _targets(objective, model, kind, examples, parallel_map)

    targets, augmented = answered(exemplars), None
    if goal == "task" and targets.kind == "classes":
        labels = checked_labels("classes", exemplars, len(targets.answers[0]))
        targets = replace(targets, examples=replace(exemplars, labels=labels))
    if settings.augmentations and goal != "task":
        count = settings.augmentations * len(exemplars)
        augmented = answered(Examples(augment(exemplars.inputs, count, seed), None))
    rest = answered(held_out) if len(held_out) else None
    settled = MultipleVector(inputs.base, vector, factors, given)
    load_model(objective, model, inputs.base, settled, 1.0, extras or {})
    return TrainingData(objective, model, places, targets, augmented, rest, exemplars.digest())


def _targets(
    objective: Objective,
    model: nn.Module,
    kind: Callable[[Tensor], OutputKind],
    examples: Examples,
    parallel_map: ParallelMap,
) -> Targets:
    parts = _parts(examples)
    found = parallel_map(
        lambda number: answers_of(objective, model, kind, examples, parts[number]), len(parts)
    )
    answers = [answer for part in found for answer in part.answers]
    places = np.argsort(np.concatenate(parts))
    head = copy.deepcopy(found[0].head)  # the model is going to get other weights
    return Targets(examples, [answers[place] for place in places], found[0].kind, head)


def _parts(examples: Examples) -> list[list[int]]:
    """Returns the rows of all examples in parts, examples of similar length together."""
    rows = examples.by_length(np.arange(len(examples)))
    return [
        part.tolist() for part in np.split(rows, range(_ANSWERED_TOGETHER, len(rows), _ANSWERED_TOGETHER))
    ]
