"""A classifier, a batch, delta matrices and plans for tests of switched models."""

from collections.abc import Sequence, Set
from typing import Any

import numpy as np
import torch
from support.checkpoints import memory_pair
from support.tiny_models import Toy, changed_state
from torch import Tensor, nn

from flexswitch.merging.switching.batch_plan import BatchPlan, batch_plan
from flexswitch.merging.switching.task_deltas import TaskDeltas
from flexswitch.merging.task_vectors.task_vector import TaskVector

BATCH = {"input_ids": torch.randint(5, 20, (6, 7), generator=torch.Generator().manual_seed(0))}
BATCH["attention_mask"] = torch.ones_like(BATCH["input_ids"])


def base_classifier(text: Toy) -> nn.Module:
    """Returns the base with a head that no task has."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(text.base, num_labels=2).eval()


def tasks_of(base: dict[str, Tensor], count: int) -> list[TaskVector]:
    """Returns task vectors that change a base state."""
    return [memory_pair(base, changed_state(base, number, 0.5)) for number in range(count)]


def deltas_of(vectors: Sequence[TaskVector], transposed: Set[str] = frozenset()) -> TaskDeltas:
    """Returns the delta matrices of some tasks, for the CPU."""
    rms = dict.fromkeys(vectors[0].tensors, 1.0)
    return TaskDeltas(vectors, rms, transposed, 1 << 20, torch.device("cpu"))


def plan_of(weights: Any, vectors: Sequence[TaskVector]) -> BatchPlan:
    """Returns the plan of a batch with these weights, (row, task)."""
    return batch_plan(np.array(weights, np.float32), deltas_of(vectors), None, None)
