"""The methods that `eval` scores: what each needs, and the bytes it stores per task without the base."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flexswitch.codecs.errors import InputError, UsageError, unknown_name
from flexswitch.codecs.format.safetensors_file import DTYPE_BYTES
from flexswitch.codecs.format.zoo import Zoo
from flexswitch.merging.evaluation.fixed_weights import score_fixed
from flexswitch.merging.evaluation.routed import MODES, score_routed
from flexswitch.merging.evaluation.scores import Score
from flexswitch.merging.evaluation.stream_weights import StreamRouter
from flexswitch.merging.evaluation.task_models import TaskModels
from flexswitch.merging.methods.registry import EVALUATED, ROUTED, STATIC_MERGES, STORED, get_method
from flexswitch.merging.static.merge import merged_tensors
from flexswitch.merging.static.tensor_settings import MergeSettings
from flexswitch.merging.switching.loaded_zoo import Engine
from flexswitch.merging.task_vectors.restore import restored_tensors
from flexswitch.merging.task_vectors.task_vector import TaskVector


@dataclass(frozen=True)
class Evaluation:
    """Everything that scoring needs.

    finetuned: the full-precision task vectors, of all tasks or of none; router: present if a routed method
    is scored; base_score: the score of the base with each task's head; merged: models that were merged
    elsewhere, by name, as their difference from the base.
    """

    task_models: TaskModels
    zoo: Zoo
    finetuned: Mapping[str, TaskVector]
    router: StreamRouter | None
    base_score: Score
    engine: Engine = "auto"
    merged: Mapping[str, TaskVector] = field(default_factory=dict)


def check_methods(methods: Sequence[str], modes: Sequence[str], zoo: Zoo, has_finetuned: bool) -> None:
    """Checks the requested methods before anything is computed.

    Raises: UsageError on an unknown method or mode; InputError if a method's inputs are missing.
    """
    packed = sorted({record.method for record in zoo.record.tasks.values()})
    for method in methods:
        if method not in EVALUATED:
            raise UsageError(f"--methods: {unknown_name('method', method, EVALUATED)}")
        if method in STATIC_MERGES:
            get_method(method, "merge").check_task_count(len(zoo))
        if method == "individual" and not has_finetuned:
            raise InputError(
                "--methods individual: needs --finetuned TASK=CHECKPOINT for every task of the zoo"
            )
        if method in STORED and packed != [method]:
            raise InputError(f"--methods {method}: the tasks of {zoo.path} are stored by {', '.join(packed)}")
        if method in ROUTED:
            zoo.index_file()
        if method == "auto-flexswitch":
            _check_learned(zoo)
    for mode in modes:
        if mode not in MODES:
            raise UsageError(f"--routing: {unknown_name('mode', mode, MODES)}")


def score(evaluation: Evaluation, method: str, modes: Sequence[str]) -> list[Score]:
    """Returns a method's scores: one, or for a routed method one for each mode."""
    task_models, finetuned = evaluation.task_models, evaluation.finetuned
    if method == "base":
        return [evaluation.base_score]
    if method == "individual":
        sizes = [_dense_bytes(vector) for vector in finetuned.values()]
        return [score_fixed(task_models, method, weights_of(task_models, finetuned, 1.0), mean_bytes(sizes))]
    if method in STATIC_MERGES:
        settings = MergeSettings(get_method(method, "merge"), {}, {})
        outputs = merged_tensors(task_models.base, finetuned or task_models.vectors, settings, None)
        return [_score_weights(task_models, method, {name: each.whole() for name, each in outputs.items()})]
    record = evaluation.zoo.record
    stored = mean_bytes([record.tasks[task].size for task in task_models.vectors])
    stored += record.shared.size / len(task_models.vectors) if record.shared else 0
    if method in STORED:
        return [score_fixed(task_models, method, weights_of(task_models, task_models.vectors, 1.0), stored)]
    return [_switched(evaluation, method, mode, stored) for mode in modes]


def score_merged(evaluation: Evaluation, name: str) -> Score:
    """Returns the score of a merged model of that name, with each task's head."""
    task_models, vector = evaluation.task_models, evaluation.merged[name]
    outputs = restored_tensors(task_models.base, vector, 1.0, torch.float32)
    weights = {each: outputs[vector.model.finetuned_name(each)].whole() for each in task_models.base.tensors}
    return _score_weights(task_models, name, weights)


def _score_weights(task_models: TaskModels, name: str, weights: Mapping[str, Tensor]) -> Score:
    """Returns the score of one set of weights, by the base's names, with each task's head."""
    return score_fixed(
        task_models, name, lambda task: task_models.set_merged(task, weights), head_bytes(task_models)
    )


def _switched(evaluation: Evaluation, method: str, mode: str, stored: float) -> Score:
    if evaluation.router is None or evaluation.zoo.record.index is None:
        raise ValueError("a routed method needs a router and a query index")
    share = evaluation.zoo.record.index.size / len(evaluation.task_models.vectors)
    return score_routed(
        evaluation.task_models, method, evaluation.router, mode, evaluation.engine, stored + share
    )


def _check_learned(zoo: Zoo) -> None:
    """Raises: InputError if no metric was learned for the index; it need not have been better."""
    index = zoo.record.index
    if index is not None and index.metric != "learned" and index.accuracy is None:
        raise InputError(
            f"--methods auto-flexswitch: no metric was learned when {zoo.path} was indexed; "
            "index it again with --metric learned --overwrite"
        )


def mean_bytes(sizes: Sequence[int]) -> float:
    """Returns the mean of sizes in bytes."""
    return sum(sizes) / len(sizes)


def head_bytes(task_models: TaskModels) -> float:
    """Returns the mean bytes of a task's own tensors."""
    return mean_bytes([_extra_bytes(vector) for vector in task_models.vectors.values()])


def weights_of(
    task_models: TaskModels, vectors: Mapping[str, TaskVector], lambda_: float
) -> Callable[[str], None]:
    """Returns a function that loads θ + λ·τ into a task's model."""
    return lambda task: task_models.set_weights(task, vectors[task], lambda_)


def _extra_bytes(vector: TaskVector) -> int:
    return sum(info.entries * DTYPE_BYTES[info.dtype] for info in vector.extras.values())


def _dense_bytes(vector: TaskVector) -> int:
    tensors = sum(info.entries * DTYPE_BYTES[info.dtype] for info in vector.tensors.values())
    return tensors + _extra_bytes(vector)
