"""Scores methods that weight the task vectors for each sample, on one shuffled stream of all tasks.

The stream is cut into batches of mixed tasks; each sample uses its own weights and the head of its own task.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.merging.evaluation.families import Family, families
from flexswitch.merging.evaluation.scores import RoutingScore, Score
from flexswitch.merging.evaluation.stream_weights import (
    Chosen,
    Stream,
    StreamRouter,
    batch_means,
    mixed_stream,
    samples_of,
)
from flexswitch.merging.evaluation.task_models import TaskModels
from flexswitch.merging.models.examples import Batch, Inputs
from flexswitch.merging.models.language_adapters import LanguageModel
from flexswitch.merging.routing.confusion import accuracy, confusion, entropy
from flexswitch.merging.switching.loaded_zoo import Engine

MODES = ("per-sample", "batch-mean", "oracle")

_COMPARED = 4  # the base runs on every fourth batch too, to compare the times


@dataclass
class _Times:
    """Seconds of the method on all batches, and of the method and the base on the compared batches."""

    all: float = 0.0
    compared: float = 0.0
    base: float = 0.0


def score_routed(
    task_models: TaskModels,
    method: str,
    router: StreamRouter,
    mode: str,
    engine: Engine,
    bytes_per_task: float,
) -> Score:
    """Returns the score of a routed method.

    mode: "per-sample" uses each sample's own weights, "batch-mean" their mean over 256 samples of one task,
    "oracle" the true task. The time is compared with the base's forward pass on every fourth batch.
    """
    tasks = list(task_models.vectors)
    stream = mixed_stream([len(task_models.examples[task]) for task in tasks])
    chosen = Chosen.nothing(len(stream), len(tasks))
    times, answers = _Times(), [None] * len(stream)
    if mode == "batch-mean":
        _choose_means(task_models, router, stream, chosen, times)
    for family in families(task_models, engine):
        own = np.flatnonzero(np.isin(stream[:, 0], family.tasks))
        first = batch_of(task_models, stream[own[:1]])
        family.model.warm_up(first)
        _choose(router, mode, stream, own[:1], first, chosen)
        size = task_models.batch_size
        for number, start in enumerate(range(0, len(own), size)):
            chunk = own[start : start + size]
            batch = batch_of(task_models, stream[chunk])
            started = time.perf_counter()
            _choose(router, mode, stream, chunk, batch, chosen)
            weights = router.weights(chosen.shares[chunk])
            found = _answers(task_models, family, batch, weights, stream[chunk])
            taken = time.perf_counter() - started
            for place, answer in zip(chunk, found, strict=True):
                answers[place] = answer
            times.all += taken
            if number % _COMPARED == 0:
                times.compared += taken
                times.base += _base_seconds(family, batch)
    values = _values(task_models, stream, answers)
    routing = None if mode == "oracle" else _routing(stream, chosen)
    seconds, ratio = times.all / len(stream), times.compared / times.base
    return Score(f"{method} ({mode})", values, bytes_per_task, seconds, routing, ratio, task_models.unit)


def _choose(
    router: StreamRouter, mode: str, stream: Stream, rows: NDArray[np.int64], batch: Batch, chosen: Chosen
) -> None:
    """Sets the shares of some samples; those of "batch-mean" are set before."""
    if mode == "per-sample":
        chosen.put(rows, router.choose(stream[rows], batch))
    elif mode == "oracle":
        chosen.shares[rows] = np.eye(chosen.shares.shape[1], dtype=np.float32)[stream[rows, 0]]


def _routing(stream: Stream, chosen: Chosen) -> RoutingScore:
    counts = confusion(stream[:, 0], chosen.leading, chosen.shares.shape[1])
    snapped = 100 * float(chosen.snapped.mean())
    return RoutingScore(accuracy(counts), counts, float(entropy(chosen.shares).mean()), snapped)


def _choose_means(
    task_models: TaskModels, router: StreamRouter, stream: Stream, chosen: Chosen, times: _Times
) -> None:
    for start in range(0, len(stream), task_models.batch_size):
        part = np.arange(start, min(start + task_models.batch_size, len(stream)))
        batch = batch_of(task_models, stream[part])
        started = time.perf_counter()
        chosen.put(part, router.choose(stream[part], batch))
        times.all += time.perf_counter() - started
    chosen.shares[:] = batch_means(stream, chosen.shares)


def batch_of(task_models: TaskModels, samples: Stream) -> Batch:
    """Returns samples of several tasks as one batch, in the same order."""
    batch = task_models.adapter.batch(samples_of(task_models.examples, samples))
    return {name: value.to(task_models.device) for name, value in batch.items()}


def _answers(
    task_models: TaskModels, family: Family, batch: Batch, weights: NDArray[np.float32], samples: Stream
) -> list[Any]:
    """Returns the answer of each sample, under its own weights and the head of its own task."""
    tasks, shares = list(task_models.vectors), torch.from_numpy(weights)
    heads = [tasks[task] for task in samples[:, 0]] if family.has_heads else None
    numbers = np.unique(samples[:, 0]).tolist()
    generates = [task_models.measures[tasks[number]].metric.generated for number in numbers]
    logits = None if all(generates) else family.model(batch, weights=shares, heads=heads)
    found: list[Any] = [None] * len(samples)
    for number in numbers:
        own = np.flatnonzero(samples[:, 0] == number)
        rows, measure = torch.from_numpy(own), task_models.measures[tasks[number]]
        inputs = task_models.examples[tasks[number]].take(samples[own, 1]).inputs
        if logits is None or measure.metric.generated:
            answers = _generated(task_models, family, inputs, shares[rows])
        else:
            part = {name: tensor[rows.to(tensor.device)] for name, tensor in batch.items()}
            answers = measure.answers(task_models.adapter, logits[rows.to(logits.device)], part, inputs)
        for place, answer in zip(own, answers, strict=True):
            found[place] = answer
    return found


def _generated(task_models: TaskModels, family: Family, inputs: Inputs, shares: Tensor) -> list[str]:
    """Returns the texts that are generated after prompts, each under its own weights (sample, task)."""
    adapter = task_models.adapter
    if not isinstance(adapter, LanguageModel):
        raise ValueError("only language models generate")

    def generate(input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        tokens: Tensor = family.model.generate(batch, shares, **options)
        return tokens

    return adapter.generated(generate, inputs, task_models.device)


def _values(task_models: TaskModels, stream: Stream, answers: Sequence[Any]) -> dict[str, float]:
    """Returns task → the value of its metric; answers: of the stream's samples."""
    values = {}
    for number, (task, measure) in enumerate(task_models.measures.items()):
        own = np.flatnonzero(stream[:, 0] == number)
        own = own[np.argsort(stream[own, 1])]
        values[task] = measure.score([answers[place] for place in own.tolist()])
    return values


def _base_seconds(family: Family, batch: Batch) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        family.plain(**batch).argmax(-1).cpu()
    return time.perf_counter() - started
