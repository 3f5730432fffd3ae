"""The weights that samples of a mixed stream get, by a zoo's query index or by their true tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.models.examples import Batch, Examples, Inputs
from flexswitch.merging.routing.features import ModelFeatures
from flexswitch.merging.routing.mixing import mixed, snap
from flexswitch.merging.routing.router import Router

Stream = NDArray[np.int64]  # (sample, 2): a task's number and the row of its file

_PUBLISHED_BATCH = 256  # samples of one task over which the published evaluation averages weights


@dataclass(frozen=True)
class Chosen:
    """shares: (sample, task) float32; leading: (sample,), the task chosen first; snapped: (sample,)."""

    shares: FloatArray
    leading: NDArray[np.int64]
    snapped: NDArray[np.bool_]

    def put(self, rows: NDArray[np.int64], other: "Chosen") -> None:
        """Takes over what was chosen for some of the samples."""
        self.shares[rows], self.leading[rows], self.snapped[rows] = (
            other.shares,
            other.leading,
            other.snapped,
        )

    @classmethod
    def nothing(cls, samples: int, tasks: int) -> "Chosen":
        """Returns what is there before anything is chosen."""
        return cls(
            np.zeros((samples, tasks), np.float32), np.zeros(samples, np.int64), np.zeros(samples, np.bool_)
        )


@dataclass(frozen=True)
class StreamRouter:
    """A zoo's router for the samples of several files."""

    router: Router
    examples: Mapping[str, Examples]

    def choose(self, samples: Stream, batch: Batch) -> Chosen:
        """Returns the shares of a batch's samples; tasks are numbered in the order of `examples`."""
        found = self.router.index.weights(self._features(samples, batch))
        columns = [self.router.index.tasks.index(task) for task in self.examples]
        shares = snap(found.weights.numpy(), self.router.voting.snap)
        snapped = (shares != found.weights.numpy()).any(1)
        return Chosen(shares[:, columns], np.argsort(columns)[found.leading.numpy()], snapped)

    def weights(self, shares: FloatArray) -> FloatArray:
        """Returns the weights of task vectors for shares (sample, task)."""
        return mixed(shares, self.router.voting.mix)

    def _features(self, samples: Stream, batch: Batch) -> Tensor:
        source, names = self.router.source, list(self.examples)
        if isinstance(source, ModelFeatures):
            return source.of(batch, samples_of(self.examples, samples))
        found = []
        for task, row in samples:
            name = names[task]
            found.append(source.rows(name, "test", self.examples[name], np.array([row])))
        return torch.cat(found)


def samples_of(examples: Mapping[str, Examples], samples: Stream) -> Inputs:
    """Returns the inputs of samples of several tasks, in their order."""
    tasks = list(examples)
    taken = [examples[tasks[task]].inputs[row] for task, row in samples]
    return taken if isinstance(taken[0], str) else np.stack(taken)


def mixed_stream(counts: Sequence[int]) -> Stream:
    """Returns all samples of all tasks in one shuffled order, the same for the same counts."""
    parts = [np.stack([np.full(count, task), np.arange(count)], 1) for task, count in enumerate(counts)]
    stream = np.concatenate(parts).astype(np.int64)
    return stream[np.random.Generator(np.random.PCG64(0)).permutation(len(stream))]


def batch_means(samples: Stream, weights: FloatArray) -> FloatArray:
    """Returns weights averaged over each 256 samples of one task, in the order of its file.

    The published evaluation does the same (docs/methods.md §6.18). samples: of a whole stream; weights:
    (sample, task).
    """
    means = np.empty_like(weights)
    for task in np.unique(samples[:, 0]):
        own = np.flatnonzero(samples[:, 0] == task)
        own = own[np.argsort(samples[own, 1], kind="stable")]
        for start in range(0, len(own), _PUBLISHED_BATCH):
            part = own[start : start + _PUBLISHED_BATCH]
            means[part] = weights[part].mean(0)
    return means
