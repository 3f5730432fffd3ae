"""What a task vector is: the change that fine-tuning made to a base, τ = float32(θ_k) − float32(θ).

Source: docs/methods.md §1.
"""

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.format.records import BaseIdentity, ModelRecord, RawTensor
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.task_vectors.reading_hints import ReadingHints

# 1 MiB of float32: a block passes through several steps without leaving the processor's cache.
READ_ENTRIES = 1 << 18


class TaskVector(Protocol):
    """One task's change to a base.

    source names it in messages. parameters counts the entries of all tensors of the base that could have
    changed. hints say how to read it quickly.
    """

    source: str
    parameters: int
    hints: ReadingHints

    @property
    def model(self) -> ModelRecord:
        """How the fine-tuned model differs from its base beside the weights."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors that may have changed, by base name in name order, with the fine-tuned dtype."""

    @property
    def extras(self) -> Mapping[str, TensorInfo]:
        """The task's own tensors, such as a head, and changed buffers, by fine-tuned name."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """The small files beside the weights that differ from the base's, as `side_files` names them."""

    def identity(self) -> BaseIdentity:
        """Returns which base it belongs to."""

    def blocks(self, name: str, size: int | None = None) -> Iterator[FloatArray]:
        """Yields a tensor's delta as flat float32 blocks of `size` entries, the last one shorter.

        size: None for `READ_ENTRIES`. Read to the end, since a damaged tensor may only be noticed there.
        """

    def exact(self, name: str) -> tuple[NDArray[np.int64], FloatArray]:
        """Returns positions and float32 values of the fine-tuned weights that base + delta misses."""

    def extra(self, name: str) -> RawTensor:
        """Returns one of the extras."""


def block_ranges(entries: int, size: int | None = None) -> Iterator[tuple[int, int]]:
    """Yields [start, stop) of each block that so many entries are read in; size: None for `READ_ENTRIES`."""
    step = size or READ_ENTRIES
    for start in range(0, entries, step):
        yield start, min(entries, start + step)


def delta_tensor(vector: TaskVector, name: str) -> Tensor:
    """Returns a tensor's whole delta, float32 in its shape."""
    info = vector.tensors[name]
    whole, start = np.empty(info.entries, np.float32), 0
    for block in vector.blocks(name):
        whole[start : start + len(block)] = block
        start += len(block)
    if start < len(whole):
        raise ValueError(f"{vector.source}: {start} of the {len(whole)} entries of tensor '{name}'")
    return torch.from_numpy(whole).reshape(info.shape)
