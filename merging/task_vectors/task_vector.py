"""Task vectors: the change that fine-tuning made to a base, and base plus task vector.

τ = float32(θ_k) − float32(θ), block by block; θ + λ·τ is computed in float32 and rounded once to the
output's dtype. Source: methods, §1 and §2.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.errors import ArtifactError
from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.records import BaseIdentity, ModelRecord, RawTensor
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from flexswitch.merging.checkpoints.dtypes import DTYPE_NAMES, TORCH_DTYPES, is_floating
from flexswitch.merging.checkpoints.fingerprint import check_base
from flexswitch.merging.task_vectors.apply import COMPILED_DTYPES, Addend

# 1 MiB of float32: a block passes through several steps without leaving the processor's cache.
BLOCK_ENTRIES = 1 << 18


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
        """Yields a unit's delta as flat float32 blocks of `BLOCK_ENTRIES`, the last one shorter."""

    def exact(self, unit: str) -> tuple[NDArray[np.int64], FloatArray]:
        """Returns positions and float32 values of the weights that base + delta would miss."""

    def extra(self, name: str) -> RawTensor:
        """Returns a tensor that is stored raw."""

    def read_ahead(self, unit: str) -> None:
        """Asks the system to have a unit's bytes in memory soon."""

    def is_cheap(self, unit: str) -> bool:
        """Returns whether `blocks` costs little more than reading a copy of them from memory."""


class ArtifactVector:
    """The task vector that an artifact decodes to."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.files = [artifact.path]
        self.digests: dict[str, str] = {}
        self.source = str(artifact.path)
        self.model = artifact.header.model
        self.parameters = artifact.header.parameters
        self.tensors = {
            name: TensorInfo(record.dtype, tuple(record.shape))
            for name, record in sorted(artifact.header.tensors.items())
        }
        self.extras = {
            name: TensorInfo(record.dtype, tuple(record.shape))
            for name, record in artifact.header.extras.items()
        }

    def identity(self) -> BaseIdentity:
        """Returns the identity of the base it was made from."""
        return self.artifact.header.base

    def blocks(self, unit: str) -> Iterator[FloatArray]:
        """Yields a unit's reconstructed delta. Raises: DecodeError."""
        record = self.artifact.header.tensors[unit]
        return self.artifact.sparse(unit).dense_blocks(record.scale, BLOCK_ENTRIES, record.zero)

    def addend(self, unit: str, lambda_: float) -> Addend:
        """Returns λ times a unit's reconstructed delta, to be added in place. Raises: DecodeError."""
        return Addend(self.artifact, unit, lambda_)

    def exact(self, unit: str) -> tuple[NDArray[np.int64], FloatArray]:
        """Returns nothing: an artifact holds no corrections."""
        return np.empty(0, np.int64), np.empty(0, np.float32)

    def extra(self, name: str) -> RawTensor:
        """Returns a tensor that is stored raw. Raises: DecodeError."""
        return self.artifact.extra(name)

    def read_ahead(self, unit: str) -> None:
        """Does nothing: a unit is a few bytes."""

    def is_cheap(self, unit: str) -> bool:
        """Returns False: a unit is decoded each time."""
        return False


def add_delta(base: Tensor, delta: Tensor) -> Tensor:
    """Returns base + delta in float32; where the delta is zero the base as it is, be it −0."""
    return torch.where(delta == 0, base, base + delta)


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


def delta_tensor(vector: TaskVector, unit: str) -> Tensor:
    """Returns a unit's whole delta, float32 in its shape."""
    blocks = [np.empty(0, np.float32), *vector.blocks(unit)]
    return torch.from_numpy(np.concatenate(blocks)).reshape(vector.tensors[unit].shape)


def task_name(path: str | Path) -> str:
    """Returns the task that a file or checkpoint is named after: its stem."""
    name = Path(str(path).split("@")[0]).name
    for suffix in (".tv.safetensors", ".safetensors", ".fsw", ".bin", ".pth", ".pt"):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


@dataclass(frozen=True)
class OutputTensor:
    """A tensor of a restored or merged model; `blocks` yields it flat, in its dtype."""

    info: TensorInfo
    blocks: Callable[[], Iterator[Tensor]]

    def whole(self) -> Tensor:
        """Returns the tensor in its shape."""
        return torch.cat([torch.empty(0, dtype=TORCH_DTYPES[self.info.dtype]), *self.blocks()]).reshape(
            self.info.shape
        )


class LazyState(Mapping[str, Tensor]):
    """A state dict whose tensors are computed as they are asked for."""

    def __init__(self, outputs: Mapping[str, OutputTensor]) -> None:
        self.outputs = outputs

    def __getitem__(self, name: str) -> Tensor:
        return self.outputs[name].whole()

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)


def restore(base: Checkpoint | str, task: TaskVector | Artifact, lambda_: float = 1.0) -> LazyState:
    """Returns the fine-tuned model θ + λ·τ̂: fine-tuned name → tensor in the base's dtype, lazily.

    Raises: InputError where `base` is not the one the task was made from.
    """
    checkpoint = open_checkpoint(base) if isinstance(base, str) else base
    vector = ArtifactVector(task) if isinstance(task, Artifact) else task
    check_base(checkpoint, vector.identity(), vector.source)
    return LazyState(restored_tensors(checkpoint, vector, lambda_, None))


def restored_tensors(
    base: Checkpoint, vector: TaskVector, lambda_: float, dtype: torch.dtype | None
) -> dict[str, OutputTensor]:
    """Returns the tensors of θ + λ·τ̂ and the task's own, by fine-tuned name; dtype None keeps the base's.

    Raises: ArtifactError where a unit does not fit the base.
    """
    check_tensors(base, vector)
    outputs = {}
    for name, info in base.tensors.items():
        output_info = TensorInfo(output_dtype(info, dtype), info.shape)
        read = _blocks(base, vector, name, lambda_, TORCH_DTYPES[output_info.dtype])
        outputs[vector.model.finetuned_name(name)] = OutputTensor(output_info, read)
    for name, info in vector.extras.items():
        output_info = TensorInfo(output_dtype(info, dtype), info.shape)
        outputs[name] = OutputTensor(output_info, _extra_block(vector, name, TORCH_DTYPES[output_info.dtype]))
    return dict(sorted(outputs.items()))


def check_tensors(base: Checkpoint, vector: TaskVector) -> None:
    """Raises: ArtifactError where a unit of the task vector has another name or shape than the base's."""
    for name, info in vector.tensors.items():
        found = base.tensors.get(name)
        if found is None or found.shape != info.shape:
            held = f"has it with the shape {list(found.shape)}" if found else "has none of that name"
            raise ArtifactError(
                f"{vector.source}: tensor '{name}' has the shape {list(info.shape)} and the base "
                f"{base.source} {held}; make the task vector again"
            )


def output_dtype(info: TensorInfo, dtype: torch.dtype | None) -> str:
    """Returns a tensor's dtype in an output: the one asked for where it is floating, else its own."""
    return DTYPE_NAMES[dtype] if dtype is not None and is_floating(info.dtype) else info.dtype


def base_blocks(base: Checkpoint, name: str) -> Iterator[Tensor]:
    """Yields a base tensor flat, block by block, in its own dtype."""
    entries = base.tensors[name].entries
    for start in range(0, entries, BLOCK_ENTRIES):
        yield base.read(name, start, min(entries, start + BLOCK_ENTRIES))


def _blocks(
    base: Checkpoint, vector: TaskVector, name: str, lambda_: float, dtype: torch.dtype
) -> Callable[[], Iterator[Tensor]]:
    def read() -> Iterator[Tensor]:
        if name not in vector.tensors:
            yield from (block.to(dtype) for block in base_blocks(base, name))
            return
        in_place = dtype in COMPILED_DTYPES and TORCH_DTYPES[base.tensors[name].dtype] == dtype
        if in_place and isinstance(vector, ArtifactVector):
            addend = vector.addend(name, lambda_)
            for block in base_blocks(base, name):
                addend.add_to(block)
                yield block
            return
        positions, values = vector.exact(name)
        start = 0
        for weights, delta in zip(base_blocks(base, name), vector.blocks(name), strict=True):
            block = add_delta(weights.to(torch.float32), lambda_ * torch.from_numpy(delta))
            if lambda_ == 1 and len(positions):
                inside = (positions >= start) & (positions < start + len(block))
                block[torch.from_numpy(positions[inside] - start)] = torch.from_numpy(values[inside])
            start += len(block)
            yield block.to(dtype)

    return read


def _extra_block(vector: TaskVector, name: str, dtype: torch.dtype) -> Callable[[], Iterator[Tensor]]:
    def read() -> Iterator[Tensor]:
        yield to_torch(vector.extra(name)).reshape(-1).to(dtype)

    return read
