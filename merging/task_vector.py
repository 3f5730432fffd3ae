"""Task vectors: the change that fine-tuning made to a base, tensor by tensor and block by block.

τ = float32(θ_k) − float32(θ). Source: methods, §1.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.container import Artifact, BaseIdentity, ModelRecord, RawTensor
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.dtypes import DTYPE_NAMES, TORCH_DTYPES

BLOCK_ENTRIES = 1 << 20


class TaskVector(Protocol):
    """One task's change to a base.

    source names it in messages; parameters counts the entries of all the base's units; units maps the
    base names of those that may have changed to the base's shape and the fine-tuned dtype, in name
    order; extras are the tensors stored raw, by fine-tuned name.
    """

    source: str
    parameters: int

    @property
    def model(self) -> ModelRecord:
        """How the fine-tuned model differs from its base beside the weights."""

    @property
    def units(self) -> Mapping[str, TensorInfo]:
        """The units that may have changed."""

    @property
    def extras(self) -> Mapping[str, TensorInfo]:
        """The tensors that are stored raw."""

    def identity(self) -> BaseIdentity:
        """Returns which base it belongs to."""

    def blocks(self, unit: str) -> Iterator[FloatArray]:
        """Yields a unit's delta as flat float32 blocks of `BLOCK_ENTRIES`, the last one shorter."""

    def exact(self, unit: str) -> tuple[NDArray[np.int64], FloatArray]:
        """Returns positions and float32 values of the weights that base + delta would miss."""

    def extra(self, name: str) -> RawTensor:
        """Returns a tensor that is stored raw."""


class ArtifactVector:
    """The task vector that an artifact decodes to."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.source = str(artifact.path)
        self.model = artifact.header.model
        self.parameters = artifact.header.parameters
        self.units = {
            name: TensorInfo(record.dtype, tuple(record.shape))
            for name, record in sorted(artifact.header.tensors.items())
        }
        self.extras = {name: TensorInfo(*artifact.extra_layout(name)) for name in artifact.header.extras}

    def identity(self) -> BaseIdentity:
        """Returns the identity of the base it was made from."""
        return self.artifact.header.base

    def blocks(self, unit: str) -> Iterator[FloatArray]:
        """Yields a unit's reconstructed delta. Raises: DecodeError."""
        scale = self.artifact.header.tensors[unit].scale
        return self.artifact.sparse(unit).dense_blocks(scale, BLOCK_ENTRIES)

    def exact(self, unit: str) -> tuple[NDArray[np.int64], FloatArray]:
        """Returns nothing: an artifact holds no corrections."""
        return np.empty(0, np.int64), np.empty(0, np.float32)

    def extra(self, name: str) -> RawTensor:
        """Returns a tensor that is stored raw. Raises: DecodeError."""
        return self.artifact.extra(name)


def raw_tensor(checkpoint: Checkpoint, name: str) -> RawTensor:
    """Returns one tensor of a checkpoint as bytes."""
    info = checkpoint.tensors[name]
    data = checkpoint.read(name).contiguous().view(torch.uint8).numpy().tobytes()
    return RawTensor(info.dtype, info.shape, data)


def to_torch(raw: RawTensor) -> Tensor:
    """Returns raw bytes as a tensor."""
    dtype = TORCH_DTYPES[raw.dtype]
    if not raw.data:
        return torch.empty(raw.shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw.data), dtype=dtype).reshape(raw.shape)


def to_raw(tensor: Tensor) -> RawTensor:
    """Returns a tensor as raw bytes."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return RawTensor(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), data)


def delta_tensor(vector: TaskVector, unit: str) -> Tensor:
    """Returns a unit's whole delta, float32 in its shape."""
    blocks = [np.empty(0, np.float32), *vector.blocks(unit)]
    return torch.from_numpy(np.concatenate(blocks)).reshape(vector.units[unit].shape)


def task_name(path: str | Path) -> str:
    """Returns the task that a file or checkpoint is named after: its stem."""
    name = Path(str(path).split("@")[0]).name
    for suffix in (".tv.safetensors", ".safetensors", ".fsw", ".bin", ".pth", ".pt"):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name
