"""Task vectors: the change that fine-tuning made to a base, and base plus task vector.

τ = float32(θ_k) − float32(θ), block by block; θ + λ·τ is computed in float32 and rounded once to the
output's dtype. Source: methods, §1 and §2.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.format.records import BaseIdentity, ModelRecord, RawTensor
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.checkpoints.checkpoint import TensorInfo

# 1 MiB of float32: a block passes through several steps without leaving the processor's cache.
READ_ENTRIES = 1 << 18


class TaskVector(Protocol):
    """One task's change to a base.

    source names it in messages; parameters counts the entries of all the base's units; units maps the
    base names of those that may have changed to the base's shape and the fine-tuned dtype, in name
    order; extras are the tensors stored raw, by fine-tuned name; digests holds the SHA-256 of those of the
    base's tensors that have been read whole.
    """

    source: str
    parameters: int
    digests: dict[str, str]

    @property
    def files(self) -> Sequence[Path]:
        """The files that it is read from."""

    @property
    def model(self) -> ModelRecord:
        """How the fine-tuned model differs from its base beside the weights."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors that may have changed."""

    @property
    def extras(self) -> Mapping[str, TensorInfo]:
        """The tensors that are stored raw."""

    def identity(self) -> BaseIdentity:
        """Returns which base it belongs to."""

    def blocks(self, unit: str) -> Iterator[FloatArray]:
        """Yields a unit's delta as flat float32 blocks of `READ_ENTRIES` entries, the last one shorter."""

    def exact(self, unit: str) -> tuple[NDArray[np.int64], FloatArray]:
        """Returns positions and float32 values of the weights that base + delta would miss."""

    def extra(self, name: str) -> RawTensor:
        """Returns a tensor that is stored raw."""

    def read_ahead(self, unit: str) -> None:
        """Asks the system to have a unit's bytes in memory soon."""

    def is_cheap(self, unit: str) -> bool:
        """Returns whether `blocks` costs little more than reading a copy of them from memory."""


def block_ranges(entries: int) -> Iterator[tuple[int, int]]:
    """Yields [start, stop) of each block that so many entries are read in."""
    for start in range(0, entries, READ_ENTRIES):
        yield start, min(entries, start + READ_ENTRIES)


def delta_tensor(vector: TaskVector, unit: str) -> Tensor:
    """Returns a unit's whole delta, float32 in its shape."""
    blocks = [np.empty(0, np.float32), *vector.blocks(unit)]
    return torch.from_numpy(np.concatenate(blocks)).reshape(vector.tensors[unit].shape)
