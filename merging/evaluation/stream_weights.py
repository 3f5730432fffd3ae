"""The weights of the samples of a mixed stream, from a zoo's query index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.models.examples import Batch, Examples, Inputs
from flexswitch.merging.models.language_adapters import LanguageModel
from flexswitch.merging.routing.features import ModelFeatures
from flexswitch.merging.routing.mixing import mixed, snap
from flexswitch.merging.routing.router import Router

Stream = NDArray[np.int64]  # (sample, 2): the task's number and the row in its file

_PUBLISHED_BATCH = 256  # the published evaluation averages weights over so many samples of one task


@dataclass(frozen=True)
class Chosen:
    """The routing of some samples.

    shares: (sample, task) float32; leading: (sample,), the task with the largest share; snapped: (sample,),
    whether a share was dropped.
    """

    shares: FloatArray
    leading: NDArray[np.int64]
    snapped: NDArray[np.bool_]

    def put(self, rows: NDArray[np.int64], other: "Chosen") -> None:
        """Copies the values of other samples to these rows."""
        self.shares[rows], self.leading[rows], self.snapped[rows] = (
            other.shares,
            other.leading,
            other.snapped,
        )

    @classmethod
    def nothing(cls, samples: int, tasks: int) -> "Chosen":
        """Returns zeros for so many samples and tasks."""
        return cls(
            np.zeros((samples, tasks), np.float32), np.zeros(samples, np.int64), np.zeros(samples, np.bool_)
        )


@dataclass(frozen=True)
class StreamRouter:
    """A zoo's router for samples of several files."""

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
        """Returns the weights (sample, task) of the task vectors for shares (sample, task)."""
        return mixed(shares, self.router.voting.mix)

    def _features(self, samples: Stream, batch: Batch) -> Tensor:
        source, names = self.router.source, list(self.examples)
        if isinstance(source, ModelFeatures):
            inputs = samples_of(self.examples, samples)
            asked = source.batch(inputs) if isinstance(source.adapter, LanguageModel) else batch
            return source.of(asked, inputs)
        found = []
        for task, row in samples:
            name = names[task]
            found.append(source.rows(name, "test", self.examples[name], np.array([row])))
        return torch.cat(found)


def samples_of(examples: Mapping[str, Examples], samples: Stream) -> Inputs:
    """Returns the inputs of samples of several tasks, in the same order."""
    tasks = list(examples)
    taken = [examples[tasks[task]].inputs[row] for task, row in samples]
    return np.stack(taken) if isinstance(taken[0], np.ndarray) else taken


def mixed_stream(counts: Sequence[int]) -> Stream:
    """Returns all samples of all tasks, shuffled; the order depends only on the counts."""
    parts = [np.stack([np.full(count, task), np.arange(count)], 1) for task, count in enumerate(counts)]
    stream = np.concatenate(parts).astype(np.int64)
    return stream[np.random.Generator(np.random.PCG64(0)).permutation(len(stream))]


def batch_means(samples: Stream, weights: FloatArray) -> FloatArray:
    """Returns the weights averaged over groups of 256 samples of one task, in the order of its file.

    samples: a whole stream; weights: (sample, task). Source: published evaluation (docs/methods.md §6.18).
    """
    means = np.empty_like(weights)
    for task in np.unique(samples[:, 0]):
        own = np.flatnonzero(samples[:, 0] == task)
        own = own[np.argsort(samples[own, 1], kind="stable")]
        for start in range(0, len(own), _PUBLISHED_BATCH):
            part = own[start : start + _PUBLISHED_BATCH]
            means[part] = weights[part].mean(0)
    return means
