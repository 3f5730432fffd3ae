"""Static merges of models in memory, for tests."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from support.checkpoints import MemoryCheckpoint, State, memory_pair

from flexswitch.merging.methods.registry import get_method
from flexswitch.merging.static.merge import merged_tensors
from flexswitch.merging.static.tensor_settings import MergeSettings, Override
from flexswitch.merging.task_vectors.restore import LazyState
from flexswitch.merging.task_vectors.task_vector import TaskVector

NAMES = "abcdefgh"


def vectors_of(base: State, tasks: Sequence[State]) -> dict[str, TaskVector]:
    """Returns the task vectors of fine-tuned states, called a, b, c …; a tensor that one lacks is the base's."""
    return {name: memory_pair(base, base | task) for name, task in zip(NAMES, tasks, strict=False)}


def merged(
    base: State,
    vectors: Mapping[str, TaskVector],
    method: str,
    settings: Mapping[str, Any] | None = None,
    *,
    weights: Mapping[str, float] | None = None,
    overrides: Sequence[tuple[str, Mapping[str, Any]]] = (),
    dtype: torch.dtype | None = None,
    **options: Any,
) -> LazyState:
    """Returns the merged model, computed as it is read."""
    record = get_method(method, "merge")
    given = MergeSettings(record, settings or {}, weights or {}, [Override(*each) for each in overrides])
    return LazyState(merged_tensors(MemoryCheckpoint(base), vectors, given, dtype, **options))
