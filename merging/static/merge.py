"""Merges task vectors into one model, tensor by tensor."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial as bind
from typing import Any

import torch
from torch import Tensor

from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.dtypes import TORCH_DTYPES
from flexswitch.merging.methods.registry import get_method
from flexswitch.merging.methods.settings import check_settings
from flexswitch.merging.task_vectors.restore import OutputTensor, base_blocks, check_tensors, output_dtype
from flexswitch.merging.task_vectors.task_vector import TaskVector, delta_tensor


def merged_tensors(
    base: Checkpoint,
    vectors: Sequence[TaskVector],
    method: str,
    settings: Mapping[str, Any],
    dtype: torch.dtype | None,
) -> dict[str, OutputTensor]:
    """Returns the merged model's tensors by base name, the tasks in the order given, each of weight 1.

    The tasks' own tensors (heads) and buffers are not merged. dtype: None for that of the base.
    Raises: UsageError on an unknown method; ArtifactError if a tensor does not fit the base.
    """
    chosen = get_method(method, "merge")
    combine = bind(chosen.load(), **dict(check_settings(chosen, settings)))
    for vector in vectors:
        check_tensors(base, vector)
    outputs = {}
    for name, info in base.tensors.items():
        output_info = TensorInfo(output_dtype(info, dtype), info.shape)
        read = _blocks(base, vectors, name, combine, TORCH_DTYPES[output_info.dtype])
        outputs[name] = OutputTensor(output_info, read)
    return outputs


def _blocks(
    base: Checkpoint,
    vectors: Sequence[TaskVector],
    name: str,
    combine: Callable[..., Tensor],
    dtype: torch.dtype,
) -> Callable[[], Iterator[Tensor]]:
    def read() -> Iterator[Tensor]:
        if not any(name in vector.tensors for vector in vectors):
            yield from (block.to(dtype) for block in base_blocks(base, name))
            return
        shape = base.tensors[name].shape
        deltas = [
            delta_tensor(vector, name) if name in vector.tensors else torch.zeros(shape) for vector in vectors
        ]  # (task, ...)
        merged = combine(deltas, [1.0] * len(vectors))
        yield (base.read(name).to(torch.float32) + merged.reshape(-1)).to(dtype)

    return read
