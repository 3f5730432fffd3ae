"""A base and its fine-tune with tensors of every kind, for the tests of task vectors."""

from pathlib import Path
from typing import Any

import torch
from support.checkpoints import State

from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.task_vectors.model_directory import write_model_directory
from flexswitch.merging.task_vectors.restore import OutputTensor, restored_tensors
from flexswitch.merging.task_vectors.task_vector import TaskVector

BASE: State = {
    "counter": torch.tensor(1),
    "empty.weight": torch.empty(0, 3),
    "w.bias": torch.tensor([1e9, 2.0, 3.0]),
    "w.weight": torch.arange(6.0).reshape(2, 3).to(torch.bfloat16),
}
FINETUNED: State = {
    "counter": torch.tensor(2),
    "empty.weight": torch.empty(0, 3),
    "head.mask": torch.tensor([True, False, True]),
    "head.weight": torch.tensor([0.5, 1.5, 2.5], dtype=torch.float16),
    "w.bias": torch.tensor([1.1, 2.1, 3.1]),
    "w.weight": torch.arange(6.0).reshape(2, 3).to(torch.bfloat16) * 1.5,
}


def outputs_of(base: Checkpoint, vector: TaskVector) -> dict[str, OutputTensor]:
    """Returns the tensors of base plus task vector in the base's dtypes."""
    return restored_tensors(base, vector, 1.0, None)


def write_restored(
    path: Path, base: Checkpoint, vector: TaskVector, shard_bytes: int = 10**9, **options: Any
) -> Path:
    outputs = outputs_of(base, vector)
    options = {"card": lambda: "# card\n", "overwrite": False} | options
    write_model_directory(
        path, outputs, base, vector.model.config, options.pop("card"), shard_bytes, **options
    )
    return path
