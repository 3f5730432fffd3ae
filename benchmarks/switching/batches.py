"""Batches of mixed texts, the weights that their samples ask for, and the time that ways to answer take."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.zoo import Zoo
from flexswitch.merging.models.examples import read_examples, task_file

LENGTH = 48  # tokens at most, as in training
FULL = 24  # tokens of every text in the batches without padding
MIXED = 0.3  # share of the samples that two tasks answer

Batch = dict[str, Tensor]


def samples(
    data: Path, adapter: Any, tasks: list[str], count: int, full: bool = False
) -> tuple[list[str], Batch]:
    """Returns mixed test texts and the batch of them; `full`: of texts that have FULL tokens, cut there."""
    generator = np.random.default_rng(0)
    texts: list[str] = []
    for task in tasks:
        inputs = read_examples(task_file(data, task, "test"), labelled=False).inputs
        suiting = [str(text) for text in inputs if not full or len(str(text).split()) >= FULL]
        texts += suiting[: -(-count // len(tasks)) * (len(tasks) if full else 1)]
    chosen = [texts[index] for index in generator.permutation(len(texts))[:count]]
    batch = adapter.batch(chosen)
    longest = FULL if full else int(batch["attention_mask"][:, :LENGTH].sum(1).max())
    return chosen, {name: tensor[:, :longest] for name, tensor in batch.items()}


def weights(count: int, tasks: int, seed: int = 0) -> Tensor:
    """Returns each sample's weights: of seven in ten one task's, of the others two tasks'."""
    generator = np.random.default_rng((count * 1000 + tasks, seed))
    found = np.zeros((count, tasks), np.float32)
    for row in found:
        first, second = generator.choice(tasks, 2, replace=False)
        share = generator.integers(6, 10) / 10 if generator.random() < MIXED else 1.0
        row[first], row[second] = share, 1 - share
    return torch.from_numpy(found)


def zipf_weights(count: int, tasks: int, seed: int) -> Tensor:
    """Returns the weights of samples of one task each, task k drawn with a probability like 1 / k."""
    chances = 1 / np.arange(1, tasks + 1)
    chosen = np.random.default_rng(seed).choice(tasks, count, p=chances / chances.sum())
    return torch.eye(tasks)[torch.from_numpy(chosen)]


def numbered(zoo: Zoo, count: int) -> dict[str, Artifact]:
    """Returns as many tasks: those of a zoo, and the same again, which are decoded and kept apart."""
    names = list(zoo)
    return {
        f"{names[number % len(names)]} {number}": zoo[names[number % len(names)]] for number in range(count)
    }


def medians(calls: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each call; all take turns in every round, and are given its number."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call(turn)
            if turn:  # the first compiles and decodes
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}
