"""Heads that differ from row to row: linear layers that the tasks store beside their task vectors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flexswitch.codecs.errors import InputError, unknown_name
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.models.loading_names import names_inside
from flexswitch.merging.switching.activations import Ids
from flexswitch.merging.switching.batch_plan import ActivePlan
from flexswitch.merging.switching.own_buffers import is_own
from flexswitch.merging.task_vectors.raw_tensors import to_torch
from flexswitch.merging.task_vectors.task_vector import TaskVector

Forward = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Head:
    """One task's linear layer. weight: (class, in), bias: (class,)."""

    weight: Tensor
    bias: Tensor | None


def read_heads(
    module: nn.Module,
    vectors: Sequence[TaskVector],
    given: Sequence[Mapping[str, Tensor]],
    rename: Callable[[str], str],
) -> dict[str, list[Head]]:
    """Returns the tasks' own heads by the module's name of the layer, one for each task.

    given: tensors of each task that take the place of its own. Tensors that the module lacks, buffers and
    single numbers are ignored. Raises: InputError where a layer is not linear, or a task lacks a head that
    another has.
    """
    found: dict[str, list[dict[str, Tensor]]] = {}
    for number, vector in enumerate(vectors):
        named = {rename(name): name for name in (*vector.extras, *given[number])}
        for other, inside in names_inside(module, list(named)).items():
            name = named[other]
            layer, _, parameter = inside.rpartition(".")
            owner = module.get_submodule(layer)
            if is_own(module, inside):
                continue
            if type(owner) is not nn.Linear:
                raise InputError(
                    f"{vector.source}: its own tensor '{name}' belongs to the module's '{layer}', a "
                    f"{type(owner).__name__}; only linear heads can differ from row to row: give heads=False"
                )
            own = found.setdefault(layer, [{} for _ in vectors])
            tensor = given[number][name] if name in given[number] else to_torch(vector.extra(name))
            own[number][parameter] = tensor.to(owner.weight.device, owner.weight.dtype)
    for layer, tensors in found.items():
        for vector, stored in zip(vectors, tensors, strict=True):
            if "weight" not in stored:
                raise InputError(
                    f"{vector.source}: has no head '{layer}' of its own, as other tasks have; "
                    "give heads=False"
                )
    return {
        layer: [Head(own["weight"], own.get("bias")) for own in tensors] for layer, tensors in found.items()
    }


def install_heads(module: nn.Module, heads: Mapping[str, Sequence[Head]], plans: ActivePlan) -> None:
    """Makes a module answer each row with the head that the current plan names.

    Where heads have different numbers of classes, the rows of smaller heads end in -inf.
    """
    for layer, tasks in heads.items():
        owner: Any = module.get_submodule(layer)
        owner.forward = _head_forward(owner.forward, tasks, plans, layer)


def _head_forward(
    original: Callable[..., Tensor], tasks: Sequence[Head], plans: ActivePlan, name: str
) -> Any:
    equal = equal_heads(tasks)

    def forward(inputs: Tensor) -> Tensor:
        plan = plans.current
        if plan is None or plan.heads is None:
            return original(inputs)
        plan.per_row(len(inputs), name)
        numbers = set(plan.heads.tolist())
        if len(numbers) == 1:
            head = equal[max(*numbers, 0)]  # a row of no task has some head too
            return functional.linear(inputs, head.weight, head.bias)
        order = np.argsort(plan.heads, kind="stable")
        counts = np.bincount(plan.heads + 1)  # (task + 1,), of no task first
        rows = inputs.reshape(plan.count, -1, inputs.shape[-1])  # (row, token, in)
        parts = rows[torch.from_numpy(order).to(rows.device)].split_with_sizes(counts[counts > 0].tolist())
        found = []
        for task, part in zip(sorted(numbers), parts, strict=True):
            head = equal[max(task, 0)]
            found.append(functional.linear(part, head.weight, head.bias))
        joined = torch.cat(found)[torch.from_numpy(np.argsort(order)).to(rows.device)]
        return joined.view(*inputs.shape[:-1], joined.shape[-1])

    return forward


def equal_heads(tasks: Sequence[Head]) -> list[Head]:
    """Returns heads of as many classes as the largest has."""
    width = max(len(head.weight) for head in tasks)
    return [_widened(head, width) for head in tasks]


def _widened(head: Head, width: int) -> Head:
    """Returns a head with as many classes as another, of which those that it lacks get -inf."""
    missing = width - len(head.weight)
    if not missing:
        return head
    bias = head.weight.new_zeros(len(head.weight)) if head.bias is None else head.bias
    weight = functional.pad(head.weight, (0, 0, 0, missing))
    return Head(weight, functional.pad(bias, (0, missing), value=-torch.inf))


def task_of_rows(heads: Sequence[str] | None, tasks: Sequence[str], shares: FloatArray) -> Ids:
    """Returns the number of each row's task, (row,): the named one, or that of its largest weight.

    shares: (row, task). -1 for a row without a weight. Raises: InputError on an unknown task or count.
    """
    if heads is None:
        return np.where(shares.any(1), shares.argmax(1), -1)
    if isinstance(heads, str):
        raise InputError(f"heads is the text '{heads}', expected a list with a task's name for each row")
    for task in heads:
        if task not in tasks:
            raise InputError(f"heads: {unknown_name('task', task, tasks)}")
    if len(heads) != len(shares):
        raise InputError(f"heads names {len(heads)} tasks, expected {len(shares)}, one for each row")
    return np.array([tasks.index(task) for task in heads], np.int64)
