"""The layers of a fused module: each answers every row of a batch under that row's own mixture of tasks.

A layer's base product is computed once for the whole batch, and the products with the tasks' deltas are added
to it. A layer of an unknown kind runs once for each mixture of the batch, on that mixture's rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import RLock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from flexswitch.merging.switching.batch_plan import ActivePlan, BatchPlan
from flexswitch.merging.switching.batch_rows import join_rows, take_rows
from flexswitch.merging.switching.delta_products import add_embeddings, add_products
from flexswitch.merging.switching.merged_linear import MergedLayer, merged_output

Forward = Callable[..., Any]


@dataclass(frozen=True)
class SwitchedLayer:
    """A layer whose weights tasks change.

    name: the module's name for it; tensors: its parameters and buffers → the task vectors' names for them.
    """

    name: str
    module: Any
    tensors: Mapping[str, str]
    plans: ActivePlan

    def plan(self) -> BatchPlan | None:
        """Returns the current plan where one of its tasks changes this layer, otherwise None."""
        plan = self.plans.current
        names = self.tensors.values()
        if plan is None or not any(name in task.deltas for task in plan.tasks for name in names):
            return None
        return plan


def switched_forward(switch: SwitchedLayer) -> Forward:
    """Returns a layer's switched forward pass by its exact type, as a subclass may compute anything."""
    kind = type(switch.module)
    if is_linear(switch.module):
        return _linear(switch)
    if kind is nn.Embedding and switch.module.max_norm is None:  # with max_norm it changes its weights
        return _embedding(switch)
    if kind is nn.LayerNorm and len(switch.module.normalized_shape) == 1:
        return _norm(switch)
    return _other(switch)


def is_linear(module: nn.Module) -> bool:
    """Returns whether a module multiplies by a matrix, or its transpose, and adds a bias."""
    return type(module) is nn.Linear or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Returns whether a module multiplies by its weight's rows, (in, out), as transformers' Conv1D does."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def _linear(switch: SwitchedLayer) -> Forward:
    original: Callable[..., Tensor] = switch.module.forward
    weight, bias = switch.tensors.get("weight"), switch.tensors.get("bias")
    layer = MergedLayer(weight or "", bias, original, switch.module.bias, is_transposed(switch.module))

    def forward(inputs: Tensor) -> Tensor:
        plan = switch.plan()
        if plan is None:
            return original(inputs)
        plan.per_row(len(inputs), switch.name)
        per_row = inputs.shape[:-1].numel() // plan.count
        given = plan.layer_input(inputs, per_row)
        merged = [task for task in plan.tasks if weight in task.merged]
        out = merged_output(plan, merged, layer, given.tokens, per_row) if merged else original(given.tokens)
        others = [task for task in plan.tasks if weight not in task.merged]
        add_products(others, weight, bias, given, out, per_row)
        out = out.to(inputs.dtype) if merged else out
        return plan.pad(out, inputs.shape[:-1], per_row)

    return forward


def _embedding(switch: SwitchedLayer) -> Forward:
    original: Callable[..., Tensor] = switch.module.forward

    def forward(ids: Tensor) -> Tensor:
        plan = switch.plan()
        if plan is None:
            return original(ids)
        if len(ids) == 1 < plan.count:  # the same for all rows, such as position ids
            ids = ids.expand(plan.count, *ids.shape[1:])
        plan.per_row(len(ids), switch.name)
        per_row = ids.numel() // plan.count
        tokens = plan.unpad(ids.reshape(-1), per_row)
        out = original(tokens)
        add_embeddings(plan, switch.tensors["weight"], tokens, out, per_row)
        return plan.pad(out, ids.shape, per_row)

    return forward


def _norm(switch: SwitchedLayer) -> Forward:
    module: nn.LayerNorm = switch.module
    original: Callable[..., Tensor] = module.forward

    def forward(inputs: Tensor) -> Tensor:
        plan = switch.plan()
        if plan is None:
            return original(inputs)
        plan.per_row(len(inputs), switch.name)
        shape = inputs.shape
        if inputs.dim() != 3 or len(inputs) != plan.count:
            inputs = inputs.reshape(plan.count, -1, shape[-1])  # (row, token, entry)
        out = functional.layer_norm(inputs, module.normalized_shape, None, None, module.eps)
        gain = _of_rows(switch, plan, "weight", module.weight)
        if module.bias is None:
            out = out * gain
        else:
            out = torch.addcmul(_of_rows(switch, plan, "bias", module.bias), out, gain)
        return out if out.shape == shape else out.view(shape)

    return forward


def _of_rows(switch: SwitchedLayer, plan: BatchPlan, name: str, own: Tensor) -> Tensor:
    """Returns a vector of parameters for each row, (row, 1, entry), or one for all, (entry,)."""
    return plan.row_vectors(switch.tensors[name], own)[:, None] if name in switch.tensors else own


def _other(switch: SwitchedLayer) -> Forward:
    """Swaps the parameters while the layer runs, so only one thread at a time may run it."""
    module, original, lock = switch.module, switch.module.forward, RLock()
    base = {**dict(module.named_parameters()), **dict(module.named_buffers())}  # a tied tensor once
    switched = {name: tensor for name, tensor in switch.tensors.items() if name in base}

    def forward(*inputs: Any, **options: Any) -> Any:
        plan = switch.plan()
        with lock:
            if plan is None:
                return original(*inputs, **options)
            tensors = [
                part for part in (*inputs, *options.values()) if isinstance(part, Tensor) and part.dim()
            ]
            length = max((len(part) for part in tensors), default=0)
            per_row = plan.per_row(length, switch.name)
            outputs, rows = [], []
            with switch.plans.using(None):
                for number in range(len(plan.mixtures)):
                    own = np.flatnonzero(plan.mixture_of == number)
                    rows.append(torch.from_numpy((own[:, None] * per_row + np.arange(per_row)).reshape(-1)))
                    state = {
                        name: plan.mixed_weight(number, tensor, base[name])
                        for name, tensor in switched.items()
                    }
                    given = take_rows((inputs, options), rows[-1], length)
                    outputs.append(functional_call(module, state, *given))
        return join_rows(outputs, torch.argsort(torch.cat(rows)))

    return forward
