"""Merges task vectors into one model, tensor by tensor and block by block."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial as bind

import torch
from torch import Tensor

from flexswitch.codecs.threads import DEFAULT_JOBS, DEFAULT_MEMORY, one_torch_thread
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.dtypes import TORCH_DTYPES
from flexswitch.merging.checkpoints.pairing import EVERYTHING, Selection
from flexswitch.merging.static.task_deltas import Block, Combination, ModelDeltas, TensorDeltas
from flexswitch.merging.static.tensor_settings import MergeSettings, layer_places
from flexswitch.merging.task_vectors.difference import add_delta
from flexswitch.merging.task_vectors.restore import (
    OutputTensor,
    check_tensors,
    output_dtype,
    unchanged_blocks,
)
from flexswitch.merging.task_vectors.rounding import rounded
from flexswitch.merging.task_vectors.task_vector import TaskVector

Combine = Callable[[TensorDeltas], Combination]


def merged_tensors(
    base: Checkpoint,
    vectors: Mapping[str, TaskVector],
    settings: MergeSettings,
    dtype: torch.dtype | None,
    *,
    selection: Selection = EVERYTHING,
    jobs: int = DEFAULT_JOBS,
    memory: int = DEFAULT_MEMORY,
) -> dict[str, OutputTensor]:
    """Returns the merged model's tensors by base name, computed as they are read.

    vectors: by task, in the order in which they are added. The tasks' own tensors (heads) and buffers are not
    merged, nor are tensors outside the selection. dtype: None for that of the base. memory: bytes that the
    blocks in progress may take.
    Raises: UsageError on wrong settings; ArtifactError if a tensor does not fit the base.
    """
    model = model_deltas(base, vectors, selection, jobs, memory, settings.method.name)
    settings.check(model.tasks, model.names)
    function, places = settings.method.load(), layer_places(model.names)
    ways: dict[str, Combine] = {}
    for name in model.names:
        arguments, model.weights[name] = settings.arguments(name, model.tasks, places[name])
        if model.tensor(name).tasks or "the base" in settings.method.needs:
            ways[name] = bind(function, **arguments)
    return combined_tensors(model, ways, dtype)


def model_deltas(
    base: Checkpoint,
    vectors: Mapping[str, TaskVector],
    selection: Selection,
    jobs: int,
    memory: int,
    method: str,
) -> ModelDeltas:
    """Returns the deltas that a merge reads. Raises: ArtifactError if a tensor does not fit the base."""
    for vector in vectors.values():
        check_tensors(base, vector)
    names = [name for name in base.tensors if selection.takes(name)]
    return ModelDeltas(base, vectors, names, jobs, memory, method)


def combined_tensors(
    model: ModelDeltas, ways: Mapping[str, Combine], dtype: torch.dtype | None
) -> dict[str, OutputTensor]:
    """Returns the base's tensors, those that have a way of combining their deltas merged by it."""
    outputs = {}
    for name, info in model.base.tensors.items():
        output_info = TensorInfo(output_dtype(info, dtype), info.shape)
        stored = TORCH_DTYPES[output_info.dtype]
        outputs[name] = OutputTensor(output_info, _unchanged(model.base, name, stored))
        if name in ways and info.entries:
            outputs[name] = OutputTensor(output_info, _merged(model.tensor(name), ways[name], stored))
    return outputs


def _unchanged(base: Checkpoint, name: str, dtype: torch.dtype) -> Callable[[], Iterator[Tensor]]:
    return lambda: unchanged_blocks(base, name, dtype)


def _merged(deltas: TensorDeltas, combine: Combine, dtype: torch.dtype) -> Callable[[], Iterator[Tensor]]:
    """Returns a function that yields the tensor's merged blocks."""
    model = deltas.model

    def read() -> Iterator[Tensor]:
        with one_torch_thread():
            combination = combine(deltas)

            def finish(block: Block) -> Tensor:
                merged = add_delta(block.base, combination.combine(block))
                return rounded(merged, block.base, dtype, deltas.name)

            waiting: deque[Future[Tensor]] = deque()
            for block in deltas.blocks(combination.trim, is_last=True):
                waiting.append(model.pool.submit(finish, block))
                if len(waiting) > model.jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    return read
