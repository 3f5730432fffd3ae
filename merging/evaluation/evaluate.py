"""Scores one set of weights a task, and what all scoring stands on: models, heads, batches."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.config import read_config
from flexswitch.merging.models.adapters import Adapter
from flexswitch.merging.models.examples import Batch, Examples
from flexswitch.merging.models.loading import load_weights, names_inside
from flexswitch.merging.models.outputs import OutputKind, output_kind
from flexswitch.merging.task_vectors.raw_tensors import to_torch
from flexswitch.merging.task_vectors.restore import OutputTensor, restored_tensors
from flexswitch.merging.task_vectors.task_vector import TaskVector

_BATCH = 64


@dataclass(frozen=True, eq=False)
class RoutingScore:
    """How samples were routed: right ones in %, counts (task, routed task), mean entropy in bits.

    snapped: % of the samples some of whose shares were dropped.
    """

    accuracy: float
    counts: NDArray[np.int64]
    entropy: float
    snapped: float


@dataclass(frozen=True)
class Score:
    """One row of the table: accuracies in percent, seconds a sample, bytes a task beside the base.

    time_over_base: over the base's forward pass of the same batches, where that was measured.
    """

    method: str
    accuracy: dict[str, float]
    bytes_per_task: float
    seconds: float
    routing: RoutingScore | None = None
    time_over_base: float | None = None

    @property
    def average(self) -> float:
        """The mean over tasks."""
        return sum(self.accuracy.values()) / len(self.accuracy)


@dataclass
class Bench:
    """What all methods are scored on: the base, the tasks' models without weights, and the examples."""

    base: Checkpoint
    adapter: Adapter
    vectors: Mapping[str, TaskVector]
    examples: Mapping[str, Examples]
    device: str = "cpu"
    models: dict[str, nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for task, vector in self.vectors.items():
            self.models[task] = self.adapter.model(vector.model.config, vector.extras)
            self.set_weights(task, vector, 0.0)
            self.models[task].to(self.device)

    def warm_up(self) -> None:
        """Runs one sample of each task, so that what is timed later is not the first call.

        Raises: InputError where what a model answers is no class.
        """
        for task, model in self.models.items():
            _, batch = next(self.batches_of(task, np.arange(1)))
            with torch.inference_mode():
                logits = self.adapter.logits(model, batch)
            vector = self.vectors[task]
            check_scored(output_kind(read_config(self.base) | vector.model.config, logits), task, vector)

    def set_weights(self, task: str, vector: TaskVector, lambda_: float = 1.0) -> None:
        """Puts θ + λ·τ and the vector's own head into a task's model; λ = 0 is the base under that head."""
        self._load(task, restored_tensors(self.base, vector, lambda_, torch.float32), vector.source)

    def set_merged(self, task: str, merged: Mapping[str, Tensor]) -> None:
        """Puts merged weights, by base name, under a task's own head."""
        vector = self.vectors[task]
        state = {vector.model.finetuned_name(name): tensor for name, tensor in merged.items()}
        state |= {name: to_torch(vector.extra(name)) for name in vector.extras}
        self._load_state(task, state, vector.source)

    def extra_names(self, task: str) -> dict[str, str]:
        """Returns the names that a task's own tensors have in its model; one that it lacks is left out."""
        named = {self.adapter.parameter_name(name): name for name in self.vectors[task].extras}
        inside = names_inside(self.models[task], list(named))
        return {named[name]: own for name, own in inside.items()}

    def batches(self, task: str) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yields a task's examples in batches, with their rows."""
        return self.batches_of(task, np.arange(len(self.examples[task])))

    def batches_of(self, task: str, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yields some of a task's examples in batches, with their rows; texts of like length together."""
        rows = self.examples[task].by_length(rows)
        for start in range(0, len(rows), _BATCH):
            chunk = rows[start : start + _BATCH]
            batch = self.adapter.batch(self.examples[task].take(chunk).inputs)
            yield chunk, {name: value.to(self.device) for name, value in batch.items()}

    def _load(self, task: str, outputs: Mapping[str, OutputTensor], source: str) -> None:
        self._load_state(task, {name: output.whole() for name, output in outputs.items()}, source)

    def _load_state(self, task: str, state: Mapping[str, Tensor], source: str) -> None:
        named = {self.adapter.parameter_name(name): tensor for name, tensor in state.items()}
        load_weights(self.models[task], named, source)


def check_scored(kind: OutputKind | None, task: str, vector: TaskVector) -> None:
    """Raises: InputError where a task's outputs are no classes: the largest of them would be no answer."""
    if kind not in ("tokens", "values"):
        return
    found = "is a language model" if kind == "tokens" else "answers with numbers, as a regression does,"
    raise InputError(
        f"{vector.source}: {found} and eval scores classes; restore the model and measure it yourself: "
        f"flexswitch merge {vector.source} --base BASE -o OUT --task {task}"
    )


def score_fixed(bench: Bench, method: str, prepare: Callable[[str], None], bytes_per_task: float) -> Score:
    """Scores one set of weights a task; `prepare` puts them into the task's model and is not timed."""
    accuracy, seconds, count = {}, 0.0, 0
    for task in bench.vectors:
        prepare(task)
        labels = labels_of(bench.examples[task])
        started = time.perf_counter()
        correct = 0
        for rows, batch in bench.batches(task):
            correct += int((_predict(bench, task, batch) == labels[rows]).sum())
        seconds += time.perf_counter() - started
        count += len(labels)
        accuracy[task] = 100 * correct / len(labels)
    return Score(method, accuracy, bytes_per_task, seconds / count)


def _predict(bench: Bench, task: str, batch: Batch) -> NDArray[np.int64]:
    with torch.inference_mode():
        logits = bench.adapter.logits(bench.models[task], batch)
    predicted: NDArray[np.int64] = logits.argmax(-1).cpu().numpy()
    return predicted


def labels_of(examples: Examples) -> NDArray[np.int64]:
    """Returns the classes of examples, (example,). Raises: InputError where they carry none."""
    if examples.labels is None:
        raise InputError("the test examples carry no labels")
    return examples.labels
