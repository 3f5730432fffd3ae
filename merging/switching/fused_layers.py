"""The layers of a switched module: each answers every row of a batch under that row's own weights.

A layer's base product is computed once for the whole batch, and the tasks' parts are added to it. A module of
none of the known kinds runs once for each different weight vector of the batch, on its rows.
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
from flexswitch.merging.switching.merged_linear import MergedLayer, merged_product

Forward = Callable[..., Any]


@dataclass(frozen=True)
class SwitchedLayer:
    """A module whose weights tasks change. units: its parameter → unit; name: for messages."""

    name: str
    module: Any
    units: Mapping[str, str]
    plans: ActivePlan

    def plan(self) -> BatchPlan | None:
        """Returns the plan of the batch at hand where one of its tasks changes this module."""
        plan = self.plans.current
        if plan is None or not any(unit in task.units for task in plan.tasks for unit in self.units.values()):
            return None
        return plan


def switched_forward(switch: SwitchedLayer) -> Forward:
    """Returns what answers for a module, chosen by its very type: a subclass may compute anything."""
    kind = type(switch.module)
    if is_linear(switch.module):
        return _linear(switch)
    if kind is nn.Embedding and switch.module.max_norm is None:  # with one it changes its own weights
        return _embedding(switch)
    if kind is nn.LayerNorm and len(switch.module.normalized_shape) == 1:
        return _norm(switch)
    return _other(switch)


def is_linear(module: nn.Module) -> bool:
    """Returns whether a module multiplies by a matrix, or its transpose, and adds a bias."""
    return type(module) is nn.Linear or is_turned(module)


def is_turned(module: nn.Module) -> bool:
    """Returns whether a module multiplies by its weight's rows, (in, out), as transformers' Conv1D does."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def _linear(switch: SwitchedLayer) -> Forward:
    original: Callable[..., Tensor] = switch.module.forward
    weight, bias = switch.units.get("weight"), switch.units.get("bias")
    layer = MergedLayer(weight or "", bias, original, switch.module.bias, is_turned(switch.module))

    def forward(inputs: Tensor) -> Tensor:
        plan = switch.plan()
        if plan is None:
            return original(inputs)
        plan.each(len(inputs), switch.name)
        each = inputs.shape[:-1].numel() // plan.count
        given = plan.given(inputs, each)
        merged = [task for task in plan.tasks if weight in task.matrices]
        out = merged_product(plan, merged, layer, given.tokens, each) if merged else original(given.tokens)
        others = [task for task in plan.tasks if weight not in task.matrices]
        add_products(others, weight, bias, given, out, each)
        out = out.to(inputs.dtype) if merged else out
        return plan.placed(out, inputs.shape[:-1], each)

    return forward


def _embedding(switch: SwitchedLayer) -> Forward:
    original: Callable[..., Tensor] = switch.module.forward

    def forward(ids: Tensor) -> Tensor:
        plan = switch.plan()
        if plan is None:
            return original(ids)
        if len(ids) == 1 < plan.count:  # the same for all rows, as positions are
            ids = ids.expand(plan.count, *ids.shape[1:])
        plan.each(len(ids), switch.name)
        each = ids.numel() // plan.count
        tokens = plan.taken(ids.reshape(-1), each)
        out = original(tokens)
        add_embeddings(plan, switch.units["weight"], tokens, out, each)
        return plan.placed(out, ids.shape, each)

    return forward


def _norm(switch: SwitchedLayer) -> Forward:
    module: nn.LayerNorm = switch.module
    original: Callable[..., Tensor] = module.forward

    def forward(inputs: Tensor) -> Tensor:
        plan = switch.plan()
        if plan is None:
            return original(inputs)
        plan.each(len(inputs), switch.name)
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
    return plan.mixed(switch.units[name], own)[:, None] if name in switch.units else own


def _other(switch: SwitchedLayer) -> Forward:
    """Its parameters are swapped while it runs, so only one thread at a time is in there."""
    module, original, lock = switch.module, switch.module.forward, RLock()
    base = {**dict(module.named_parameters()), **dict(module.named_buffers())}

    def forward(*inputs: Any, **options: Any) -> Any:
        plan = switch.plan()
        with lock:
            if plan is None:
                return original(*inputs, **options)
            tensors = [
                part for part in (*inputs, *options.values()) if isinstance(part, Tensor) and part.dim()
            ]
            length = max((len(part) for part in tensors), default=0)
            each = plan.each(length, switch.name)
            outputs, rows = [], []
            with switch.plans.following(None):
                for number in range(len(plan.vectors)):
                    own = np.flatnonzero(plan.vector_of == number)
                    rows.append(torch.from_numpy((own[:, None] * each + np.arange(each)).reshape(-1)))
                    state = {
                        name: plan.weights(number, unit, base[name]) for name, unit in switch.units.items()
                    }
                    given = take_rows((inputs, options), rows[-1], length)
                    outputs.append(functional_call(module, state, *given))
        return join_rows(outputs, torch.argsort(torch.cat(rows)))

    return forward
