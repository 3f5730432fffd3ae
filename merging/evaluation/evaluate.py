"""Scores every method on every task of a zoo.

Routed methods answer one mixed, shuffled stream of all tasks' examples, each sample under its own
weights; the head is that of the sample's task.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoint import Checkpoint, read_config
from flexswitch.merging.evaluation.adapters import Adapter
from flexswitch.merging.evaluation.data import Batch, Examples
from flexswitch.merging.evaluation.outputs import OutputKind, output_kind
from flexswitch.merging.loading import load_weights, names_inside
from flexswitch.merging.routing.query_index import QueryIndex
from flexswitch.merging.switching.mixture import Mixture
from flexswitch.merging.task_vector import OutputTensor, TaskVector, restored_tensors, to_torch

_BATCH = 64


@dataclass(frozen=True)
class Score:
    """One row of the table: accuracies in percent, seconds a sample, bytes a task beside the base."""

    method: str
    accuracy: dict[str, float]
    bytes_per_task: float
    seconds: float
    routing_accuracy: float | None = None

    @property
    def average(self) -> float:
        """The mean over tasks."""
        return sum(self.accuracy.values()) / len(self.accuracy)


@dataclass(frozen=True)
class Router:
    """Gives a task's test samples their weights: features by task, and the index that they ask."""

    index: QueryIndex
    features: Callable[[str], Tensor]


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

    def parameter_names(self, task: str, units: Sequence[str]) -> dict[str, str]:
        """Returns the names that units have in a task's model; one that it lacks is left out."""
        model = self.vectors[task].model
        named = {unit: self.adapter.parameter_name(model.finetuned_name(unit)) for unit in units}
        inside = names_inside(self.models[task], list(named.values()))
        return {unit: inside[name] for unit, name in named.items() if name in inside}

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
        labels = _labels(bench.examples[task])
        started = time.perf_counter()
        correct = 0
        for rows, batch in bench.batches(task):
            correct += int((_predict(bench, task, {}, batch) == labels[rows]).sum())
        seconds += time.perf_counter() - started
        count += len(labels)
        accuracy[task] = 100 * correct / len(labels)
    return Score(method, accuracy, bytes_per_task, seconds / count)


def score_switched(bench: Bench, method: str, router: Router, mode: str, bytes_per_task: float) -> Score:
    """Scores a routed method on the mixed stream of all tasks.

    mode "per-sample": each sample under its own weights; "batch-mean": the weights averaged over
    batches of 256 samples of one task, as the published evaluation does; "oracle": the true task's.
    Timed are the routing, the mixing of weights and the forward passes, not the loading of vectors.
    """
    tasks = list(bench.vectors)
    for task, vector in bench.vectors.items():
        bench.set_weights(task, vector, 0.0)
    mixture = _mixture(bench)
    mixture.weights([1.0] * len(tasks))  # decodes the vectors
    started = time.perf_counter()
    shares, routing_accuracy = _shares(bench, router, mode)
    stream, weights = _mixed_stream(shares)  # (sample,) of (task, row), (sample, task)
    correct = _count_correct(bench, mixture, stream, weights)
    seconds = time.perf_counter() - started
    accuracy = {task: 100 * correct[task] / len(shares[task]) for task in tasks}
    return Score(method, accuracy, bytes_per_task, seconds / len(stream), routing_accuracy)


def _count_correct(
    bench: Bench, mixture: Mixture, stream: NDArray[np.int64], weights: NDArray[np.float32]
) -> dict[str, int]:
    """Returns the right answers by task; samples of equal weights are answered together."""
    tasks = list(bench.vectors)
    names = {task: bench.parameter_names(task, mixture.units) for task in tasks}
    correct = dict.fromkeys(tasks, 0)
    _, group_of = np.unique(weights, axis=0, return_inverse=True)
    order = np.argsort(group_of.reshape(-1), kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(group_of.reshape(-1)[order])) + 1):
        mixed = mixture.weights(weights[group[0]].tolist())
        for task_number in np.unique(stream[group, 0]):
            task = tasks[task_number]
            rows = stream[group, 1][stream[group, 0] == task_number]
            state = {name: mixed[unit].to(bench.device) for unit, name in names[task].items()}
            for chunk, batch in bench.batches_of(task, rows):
                labels = _labels(bench.examples[task])[chunk]
                correct[task] += int((_predict(bench, task, state, batch) == labels).sum())
    return correct


def _shares(bench: Bench, router: Router, mode: str) -> tuple[dict[str, NDArray[np.float32]], float | None]:
    """Returns each task's samples' weights (sample, task), and how often the right task leads (%)."""
    tasks = list(bench.vectors)
    if mode == "oracle":
        one_hot = np.eye(len(tasks), dtype=np.float32)
        counts = [len(bench.examples[task]) for task in tasks]
        return {task: np.tile(one_hot[n], (counts[n], 1)) for n, task in enumerate(tasks)}, None
    shares, leading = _route(tasks, router)
    routing_accuracy = 100 * float(np.mean(np.concatenate([leading[task] == task for task in tasks])))
    if mode == "batch-mean":
        shares = {task: _batch_means(each) for task, each in shares.items()}
    return shares, routing_accuracy


def _predict(bench: Bench, task: str, state: Mapping[str, Tensor], batch: Batch) -> NDArray[np.int64]:
    model = bench.models[task]
    wrapped = _Logits(bench.adapter, model)
    with torch.inference_mode():
        logits = functional_call(
            wrapped, {f"model.{name}": tensor for name, tensor in state.items()}, (batch,)
        )
    predicted: NDArray[np.int64] = logits.argmax(-1).cpu().numpy()
    return predicted


class _Logits(nn.Module):
    """An adapter's logits as a module, so that its parameters can be swapped for one call."""

    def __init__(self, adapter: Adapter, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._adapter = adapter

    def forward(self, batch: Batch) -> Tensor:
        return self._adapter.logits(self.model, batch)


def _route(
    tasks: Sequence[str], router: Router
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.str_]]]:
    """Returns each task's samples' weights (sample, task), and the leading task's name."""
    index = router.index
    columns = [index.tasks.index(task) for task in tasks]
    shares, leading = {}, {}
    for task in tasks:
        routed = index.weights(router.features(task))
        shares[task] = routed.weights.numpy()[:, columns]
        leading[task] = np.array(index.tasks)[routed.leading.numpy()]
    return shares, leading


def _batch_means(weights: NDArray[np.float32], batch: int = 256) -> NDArray[np.float32]:
    chunks = [weights[start : start + batch] for start in range(0, len(weights), batch)]
    return np.concatenate([np.broadcast_to(chunk.mean(0), chunk.shape) for chunk in chunks])


def _mixed_stream(shares: Mapping[str, NDArray[np.float32]]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    stream = np.concatenate(
        [
            np.stack([np.full(len(each), number), np.arange(len(each))], 1)
            for number, each in enumerate(shares.values())
        ]
    )
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(stream))
    return stream[order], np.concatenate(list(shares.values()))[order]


def _mixture(bench: Bench) -> Mixture:
    units = sorted(set().union(*(vector.units for vector in bench.vectors.values())))
    base = {unit: bench.base.read(unit).view(bench.base.tensors[unit].shape) for unit in units}
    return Mixture(base, list(bench.vectors.values()))


def _labels(examples: Examples) -> NDArray[np.int64]:
    if examples.labels is None:
        raise InputError("the test examples carry no labels")
    return examples.labels
