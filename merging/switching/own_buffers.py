"""Tensors that differ from row to row and are not mixed: buffers, and numbers that the tasks store exactly.

A variance between two tasks', or beyond one's, is no variance of any model.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from threading import RLock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flexswitch.merging.models.loading_names import names_inside
from flexswitch.merging.switching.batch_plan import ActivePlan
from flexswitch.merging.switching.batch_rows import join_rows, take_rows
from flexswitch.merging.task_vectors.raw_tensors import to_torch
from flexswitch.merging.task_vectors.task_vector import TaskVector

Buffers = Mapping[str, Tensor]  # one task's buffers of a layer; it has the base's where it stores none
Call = Callable[..., Any]


def is_own(module: nn.Module, name: str) -> bool:
    """Returns whether a tensor of a module's state is a buffer or one number, such as a temperature."""
    layer, _, tensor = name.rpartition(".")
    owner = module.get_submodule(layer)
    parameter = dict(owner.named_parameters(recurse=False)).get(tensor)
    return tensor in dict(owner.named_buffers(recurse=False)) or (
        parameter is not None and not parameter.dim()
    )


def read_buffers(
    module: nn.Module, vectors: Sequence[TaskVector], rename: Callable[[str], str]
) -> dict[str, list[Buffers]]:
    """Returns the tasks' own buffers by the module's name of the layer, one mapping for each task."""
    found: dict[str, list[dict[str, Tensor]]] = {}
    for number, vector in enumerate(vectors):
        named = {rename(name): name for name in vector.extras}
        for other, inside in names_inside(module, list(named)).items():
            if is_own(module, inside):
                layer, _, name = inside.rpartition(".")
                before = getattr(module.get_submodule(layer), name)
                own = found.setdefault(layer, [{} for _ in vectors])
                own[number][name] = to_torch(vector.extra(named[other])).to(before.device, before.dtype)
    return {layer: list(own) for layer, own in found.items()}


def install_buffers(module: nn.Module, buffers: Mapping[str, Sequence[Buffers]], plans: ActivePlan) -> None:
    """Makes a module's layers answer each row with the buffers of the task that the current plan names."""
    for layer, tasks in buffers.items():
        owner: Any = module.get_submodule(layer)
        owner.forward = _forward(owner, tasks, plans, layer)


def _forward(owner: Any, tasks: Sequence[Buffers], plans: ActivePlan, name: str) -> Call:
    """Swaps the buffers while the layer runs, so only one thread at a time may run it."""
    original: Call = owner.forward
    lock = RLock()
    base = {each: getattr(owner, each) for own in tasks for each in own}

    @wraps(original)
    def forward(*inputs: Any, **options: Any) -> Any:
        plan = plans.current
        with lock:
            if plan is None or plan.heads is None:
                return original(*inputs, **options)
            outputs, rows = [], []
            for task in np.unique(plan.heads):
                try:
                    _put(owner, base if task < 0 else {**base, **tasks[task]})
                    whole = original(*inputs, **options)  # all rows, as the plan's tasks count them
                finally:
                    _put(owner, base)
                if (plan.heads == task).all():
                    return whole
                length = max(len(part) for part in _tensors(whole))
                per_row = plan.per_row(length, name)
                own = np.flatnonzero(plan.heads == task)
                rows.append(torch.from_numpy((own[:, None] * per_row + np.arange(per_row)).reshape(-1)))
                outputs.append(take_rows(whole, rows[-1], length))
        return join_rows(outputs, [len(own) for own in rows], torch.argsort(torch.cat(rows)))

    return forward


def _put(owner: nn.Module, buffers: Buffers) -> None:
    for name, tensor in buffers.items():
        held: dict[str, Any] = owner._parameters if name in owner._parameters else owner._buffers
        held[name] = tensor


def _tensors(output: Any) -> list[Tensor]:
    """Returns the tensors of a layer's output that have rows."""
    parts = (output,) if isinstance(output, Tensor) else output
    found = parts.values() if isinstance(parts, Mapping) else parts
    return [part for part in found if isinstance(part, Tensor) and part.dim()]
