"""A base plus a task vector: θ + λ·τ, computed in float32 and rounded once to the output's dtype.

Source: docs/methods.md §1.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flexswitch.codecs.argument_types import NUMBER, PATH, check_argument, is_number, is_path
from flexswitch.codecs.errors import ArtifactError
from flexswitch.codecs.format.container import Artifact
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.dtypes import DTYPE_NAMES, TORCH_DTYPES
from flexswitch.merging.checkpoints.fingerprint import check_base
from flexswitch.merging.checkpoints.floating import is_floating
from flexswitch.merging.checkpoints.hashing import open_base
from flexswitch.merging.task_vectors.apply import COMPILED_DTYPES
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.difference import add_delta
from flexswitch.merging.task_vectors.raw_tensors import to_torch
from flexswitch.merging.task_vectors.rounding import rounded
from flexswitch.merging.task_vectors.shared_vector import artifact_vector
from flexswitch.merging.task_vectors.task_vector import TaskVector, block_ranges

_NO_CORRECTIONS = (np.empty(0, np.int64), np.empty(0, np.float32))


@dataclass(frozen=True)
class OutputTensor:
    """A tensor of a restored or merged model; `blocks` yields its entries flat, in its dtype."""

    info: TensorInfo
    blocks: Callable[[], Iterator[Tensor]]

    def whole(self) -> Tensor:
        """Returns the tensor in its shape."""
        return torch.cat([torch.empty(0, dtype=TORCH_DTYPES[self.info.dtype]), *self.blocks()]).reshape(
            self.info.shape
        )


class LazyState(Mapping[str, Tensor]):
    """A state dict whose tensors are computed on access."""

    def __init__(self, outputs: Mapping[str, OutputTensor]) -> None:
        self.outputs = outputs

    def __getitem__(self, name: str) -> Tensor:
        return self.outputs[name].whole()

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)


def restore(base: Checkpoint | str | Path, task: TaskVector | Artifact, lambda_: float = 1.0) -> LazyState:
    """Returns the fine-tuned model θ + λ·τ̂: fine-tuned name → tensor, lazily, in the base's dtype.

    With λ = 1, tensors that are stored exactly are the fine-tuned ones, bit for bit.

    Raises: InputError if `base` is not the one the task was made from.
    """
    is_base = is_path(base) or (hasattr(base, "tensors") and hasattr(base, "read"))
    check_argument("restore", "base", base, is_base, f"{PATH}, or what open_checkpoint returns")
    is_task = isinstance(task, Artifact) or hasattr(task, "identity")
    check_argument("restore", "task", task, is_task, "what open_artifact returns, or zoo[task]")
    check_argument("restore", "lambda_", lambda_, is_number(lambda_), NUMBER)
    checkpoint = open_base(base) if isinstance(base, (str, Path)) else base
    vector = artifact_vector(task, checkpoint) if isinstance(task, Artifact) else task
    check_base(checkpoint, vector.identity(), vector.source)
    return LazyState(restored_tensors(checkpoint, vector, lambda_, None))


def restored_tensors(
    base: Checkpoint, vector: TaskVector, lambda_: float, dtype: torch.dtype | None
) -> dict[str, OutputTensor]:
    """Returns the tensors of θ + λ·τ̂ and the task's own, by fine-tuned name.

    dtype: None for that of the base, or for λ = 1 the fine-tuned one of tensors that are stored exactly.

    Raises: ArtifactError if a tensor does not fit the base.
    """
    check_tensors(base, vector)
    outputs = {}
    for name, info in base.tensors.items():
        is_exact = _is_exact(vector, name, lambda_)
        output_info = TensorInfo(output_dtype(vector.tensors[name] if is_exact else info, dtype), info.shape)
        read = _blocks(base, vector, name, lambda_, TORCH_DTYPES[output_info.dtype])
        outputs[vector.model.finetuned_name(name)] = OutputTensor(output_info, read)
    outputs |= tied_outputs(base, outputs, vector.model.finetuned_name)
    for name, info in vector.extras.items():
        output_info = TensorInfo(output_dtype(info, dtype), info.shape)
        outputs[name] = OutputTensor(output_info, _extra_block(vector, name, TORCH_DTYPES[output_info.dtype]))
    return dict(sorted(outputs.items()))


def tied_outputs(
    base: Checkpoint, outputs: Mapping[str, OutputTensor], rename: Callable[[str], str] = str
) -> dict[str, OutputTensor]:
    """Returns the outputs of the further names of tied tensors, so that an output has all names of the base.

    rename: returns the output's name of a base's tensor.
    """
    return {rename(alias): outputs[rename(name)] for alias, name in base.aliases.items()}


def check_tensors(base: Checkpoint, vector: TaskVector) -> None:
    """Checks that the base has every tensor of the task vector, in the same shape.

    Raises: InputError if it is another base; ArtifactError if the task vector does not fit its own.
    """
    for name, info in vector.tensors.items():
        found = base.tensors.get(name)
        if found is None or found.shape != info.shape:
            check_base(base, vector.identity(), vector.source)
            held = f"has it with the shape {list(found.shape)}" if found else "has none of that name"
            raise ArtifactError(
                f"{vector.source}: tensor '{name}' has the shape {list(info.shape)} and the base "
                f"{base.source} {held}; make the task vector again"
            )


def output_dtype(info: TensorInfo, dtype: torch.dtype | None) -> str:
    """Returns a tensor's dtype in an output: the requested one if the tensor is floating, else its own."""
    return DTYPE_NAMES[dtype] if dtype is not None and is_floating(info.dtype) else info.dtype


def base_blocks(base: Checkpoint, name: str) -> Iterator[Tensor]:
    """Yields a base tensor flat, block by block, in its own dtype."""
    for start, stop in block_ranges(base.tensors[name].entries):
        yield base.read(name, start, stop)


def unchanged_blocks(base: Checkpoint, name: str, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yields a base tensor flat, block by block, in a dtype. Raises: InputError on overflow."""
    return (rounded(block, block, dtype, name) for block in base_blocks(base, name))


def _blocks(
    base: Checkpoint, vector: TaskVector, name: str, lambda_: float, dtype: torch.dtype
) -> Callable[[], Iterator[Tensor]]:
    def read() -> Iterator[Tensor]:
        if name not in vector.tensors:
            yield from unchanged_blocks(base, name, dtype)
            return
        if isinstance(vector, ArtifactVector) and _is_exact(vector, name, lambda_):
            yield from (rounded(numbers, numbers, dtype, name) for numbers in vector.numbers(name))
            return
        in_place = dtype in COMPILED_DTYPES and TORCH_DTYPES[base.tensors[name].dtype] == dtype
        if in_place and isinstance(vector, ArtifactVector) and vector.is_sparse(name):
            addend = vector.addend(name, lambda_)
            for block in base_blocks(base, name):
                addend.add_to(block)
                yield block
            return
        positions, values = vector.exact(name) if lambda_ == 1 else _NO_CORRECTIONS
        start = 0
        for weights, delta in zip(base_blocks(base, name), vector.blocks(name), strict=True):
            block = add_delta(weights.to(torch.float32), lambda_ * torch.from_numpy(delta))
            if len(positions):
                inside = (positions >= start) & (positions < start + len(block))
                block[torch.from_numpy(positions[inside] - start)] = torch.from_numpy(values[inside])
            start += len(block)
            yield rounded(block, weights, dtype, name)

    return read


def _is_exact(vector: TaskVector, name: str, lambda_: float) -> bool:
    """Returns whether a tensor of the output is the fine-tuned one, bit for bit, and in its dtype."""
    if not isinstance(vector, ArtifactVector) or name not in vector.tensors:
        return False
    return lambda_ == 1 and vector.is_exact(name)


def _extra_block(vector: TaskVector, name: str, dtype: torch.dtype) -> Callable[[], Iterator[Tensor]]:
    def read() -> Iterator[Tensor]:
        own = to_torch(vector.extra(name)).reshape(-1)
        yield rounded(own, own, dtype, name)

    return read
