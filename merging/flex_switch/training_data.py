"""Training data: the model, the exemplars with the fine-tuned model's answers, and the batches."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.extra_forms import PackedExtra, unpacked_extra
from flexswitch.codecs.threads import ParallelMap
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.config import read_config
from flexswitch.merging.checkpoints.fingerprint import check_base
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
from flexswitch.merging.flex_switch.weight_decay import MultipleVector
from flexswitch.merging.models.adapters import get_adapter, kind_of
from flexswitch.merging.models.device import check_device
from flexswitch.merging.models.examples import Batch, Examples, draw, read_exemplars, task_file
from flexswitch.merging.models.fused_tensors import Place, places_inside
from flexswitch.merging.models.huggingface import HuggingFace
from flexswitch.merging.models.labels import checked_labels
from flexswitch.merging.models.length_buckets import short_parts
from flexswitch.merging.models.loading import load_weights
from flexswitch.merging.models.loading_names import names_inside
from flexswitch.merging.models.outputs import OutputKind
from flexswitch.merging.models.streamed_linear import stream_linear, streamed_layers, without_matrices
from flexswitch.merging.task_vectors.raw_tensors import to_torch
from flexswitch.merging.task_vectors.restore import restored_tensors
from flexswitch.merging.task_vectors.task_vector import TaskVector

_ANSWERED_TOGETHER = 25
_TOGETHER = 4  # examples of a step that are padded to the longest of them
_MOST_HELD_OUT = 100
_REPEATED = ("albert",)  # families whose layers are used more than once in a forward pass


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
        _load(self.objective, self.model, base, vector, 1.0)

    def losses(self, rows: Sequence[int], shards: int) -> list[Loss]:
        """Returns the loss of each shard of a batch, weighted so that they sum to the batch's mean loss."""
        ordered = list(self.training_set.examples.by_length(np.asarray(sorted(rows), np.int64)))
        parts = [ordered[shard::shards] for shard in range(shards)]
        return [self._loss(part, len(part) / len(ordered)) for part in parts if part]

    @cached_property
    def training_set(self) -> Targets:
        """The exemplars, followed by the inputs augmented from them."""
        return self.exemplars if self.augmented is None else joined(self.exemplars, self.augmented)

    def _loss(self, rows: list[int], weight: float) -> Loss:
        def loss(model: nn.Module) -> Tensor:
            batch = self.objective.batch(self.training_set.examples, rows)
            return torch.stack(
                [
                    weight
                    * len(places)
                    / len(rows)
                    * self._part_loss(model, [rows[place] for place in places], part)
                    for places, part in short_parts(batch, _TOGETHER)
                ]
            ).sum()

        return loss

    def _part_loss(self, model: nn.Module, rows: list[int], batch: Batch) -> Tensor:
        with self.objective.precise():
            found = self.objective.outputs(model, batch)
        return self.objective.loss(found, self.training_set, rows, batch)

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
) -> TrainingData:
    """Returns a task's training data, with the fine-tuned model's answers.

    extras: the task's own tensors as they are stored, which the trained model has. factors: tensor → the
    multiple of the base's weights that it has beside them.

    Raises: InputError if there are fewer exemplars than `min_exemplars` or a file is missing; UsageError.
    """
    inputs, goal, seed = settings.inputs, settings.goal, settings.seed
    check_base(inputs.base, vector.identity(), vector.source)
    exemplars, held_out = read_training_examples(settings)
    adapter = get_adapter(inputs.base, vector.model.adapter, inputs.adapter, inputs.max_length)
    objective = Objective(goal, adapter, inputs.device, settings.precision)
    # Frozen: torch chooses another product for weights that require gradients, even where it computes none.
    model = _model(objective, vector, inputs.base if settings.streamed else None).requires_grad_(False)
    places = _places(objective, vector, model)
    _load(objective, model, inputs.base, vector, 1.0)
    if inputs.device != "cpu":
        model.to(inputs.device)
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
    _load(objective, model, inputs.base, MultipleVector(inputs.base, vector, factors), 1.0, extras or {})
    return TrainingData(objective, model, places, targets, augmented, rest, exemplars.digest())


def _model(objective: Objective, vector: TaskVector, streamed: Checkpoint | None) -> nn.Module:
    """Returns the model without a task's weights. streamed: the base whose matrices are not held."""
    adapter = objective.adapter
    if objective.goal == "mse":
        return adapter.encoder()
    able = objective.device == "cpu" and isinstance(adapter, HuggingFace)
    if streamed is None or not able or read_config(streamed).get("model_type") in _REPEATED:
        return adapter.model(vector.model.config, vector.extras)
    with without_matrices():
        model = adapter.model(vector.model.config, vector.extras)
    inside = _inside(objective)
    names = [inside(vector.model.finetuned_name(name)) for name in streamed.tensors]
    stream_linear(model, set(names_inside(model, names).values()))
    return model


def _inside(objective: Objective) -> Callable[[str], str]:
    """Returns the function from a fine-tuned parameter's name to its name in the model."""
    return (lambda name: name) if objective.goal == "mse" else objective.adapter.parameter_name


def _places(objective: Objective, vector: TaskVector, model: nn.Module) -> dict[str, Place]:
    inside = _inside(objective)
    named = {name: inside(vector.model.finetuned_name(name)) for name in vector.tensors}
    found = places_inside(model, {named[name]: info.shape for name, info in vector.tensors.items()})
    return {name: found[inner] for name, inner in named.items() if inner in found}


def _load(
    objective: Objective,
    model: nn.Module,
    base: Checkpoint,
    vector: TaskVector,
    lambda_: float,
    extras: Mapping[str, PackedExtra] = MappingProxyType({}),
) -> None:
    inside, restored = _inside(objective), restored_tensors(base, vector, lambda_, torch.float32)
    outputs = {inside(name): output for name, output in restored.items()}
    layers, weights = streamed_layers(model), {}
    places = names_inside(model, list(outputs)) if layers else {}
    for name, output in outputs.items():
        layer = layers.get(places.get(name, ""))
        if layer is None:
            weights[name] = output.whole()
        else:
            layer.source.read, weights[name] = output.whole, layer.weight
    for name, stored in extras.items():
        if name in vector.extras:  # and not a file
            weights[inside(name)] = to_torch(unpacked_extra(stored.record, stored.data))
    load_weights(model, weights, vector.source)


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
