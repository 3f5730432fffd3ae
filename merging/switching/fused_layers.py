"""The layers of a fused module: each answers every row of a batch under that row's own mixture of tasks.

A layer's base product is computed once for the whole batch, and the products with the tasks' deltas are added
to it. A layer of an unknown kind runs once for each mixture of the batch, on that mixture's rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flexswitch.merging.switching.batch_plan import ActivePlan, BatchPlan
from flexswitch.merging.switching.batch_rows import join_rows, take_rows
from flexswitch.merging.switching.delta_products import add_embeddings, add_products
from flexswitch.merging.switching.held_products import LinearLayer, held_products
from flexswitch.merging.switching.tensor_swap import TensorSwap

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
        return None if plan is None or plan.changed.isdisjoint(names) else plan


def switched_forward(switch: SwitchedLayer, norms: Mapping[str, Mapping[str, Tensor]]) -> Forward:
    """Returns a layer's switched forward pass by its exact type, as a subclass may compute anything.

    norms: a norm's tensor → the base's tensors of all norms that have its dtype.
    """
    if is_linear(switch.module):
        return _by_any_name(_linear(switch))
    if is_embedding(switch.module):
        return _by_any_name(_embedding(switch))
    if is_norm(switch.module):
        return _by_any_name(_norm(switch, norms))
    if is_rms_norm(switch.module) and _takes_weights_of_rows(switch.module):
        return _by_any_name(_rms_norm(switch, norms))
    return _other(switch)


def _by_any_name(forward: Callable[[Tensor], Tensor]) -> Forward:
    """Returns a layer's forward pass that takes its only input by any name, as layers call it differently."""

    def named(*inputs: Tensor, **options: Tensor) -> Tensor:
        return forward(*inputs, *options.values())

    return named


def is_linear(module: nn.Module) -> bool:
    """Returns whether a module multiplies by a matrix, or its transpose, and adds a bias."""
    return type(module) is nn.Linear or is_transposed(module)


def is_embedding(module: nn.Module) -> bool:
    """Returns whether a module takes rows of a table; one with a max_norm changes them too."""
    return type(module) is nn.Embedding and module.max_norm is None


def has_vectors(module: nn.Module) -> bool:
    """Returns whether a module's tensors are vectors of which each row may have its own."""
    return is_norm(module) or is_rms_norm(module)


def is_norm(module: nn.Module) -> bool:
    """Returns whether a module normalises the last dimension and multiplies by a vector."""
    return type(module) is nn.LayerNorm and len(module.normalized_shape) == 1 and module.elementwise_affine


def is_rms_norm(module: nn.Module) -> bool:
    """Returns whether a module divides by the root mean square and multiplies by its only vector."""
    if type(module) is nn.RMSNorm:
        return len(module.normalized_shape) == 1 and module.elementwise_affine
    name, home = type(module).__name__, type(module).__module__
    if not (name.endswith(("RMSNorm", "T5LayerNorm")) and home.startswith("transformers.")):
        return False
    return [(own, tensor.dim()) for own, tensor in module.state_dict().items()] == [("weight", 1)]


def is_transposed(module: nn.Module) -> bool:
    """Returns whether a module multiplies by its weight's rows, (in, out), as transformers' Conv1D does."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def _linear(switch: SwitchedLayer) -> Forward:
    original: Callable[..., Tensor] = switch.module.forward
    weight, bias = switch.tensors.get("weight"), switch.tensors.get("bias")
    base = switch.module.weight, switch.module.bias
    layer = LinearLayer(base, (weight, bias), is_transposed(switch.module))

    def forward(inputs: Tensor) -> Tensor:
        plan = switch.plan()
        if plan is None:
            return original(inputs)
        if plan.alone is not None:
            return functional.linear(inputs, *layer.under(plan.alone))
        plan.per_row(len(inputs), switch.name)
        per_row = inputs.shape[:-1].numel() // plan.count
        if plan.padding is None and not plan.others:
            found = held_products(plan, layer, inputs.reshape(-1, inputs.shape[-1]), per_row)
            return found.view(*inputs.shape[:-1], found.shape[-1])
        given = plan.layer_input(inputs, per_row)
        out = held_products(plan, layer, given.tokens, per_row) if plan.terms.held else original(given.tokens)
        if plan.others:
            add_products(plan.others, weight, bias, given, out, per_row, base[1])
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


def _norm(switch: SwitchedLayer, norms: Mapping[str, Mapping[str, Tensor]]) -> Forward:
    module: nn.LayerNorm = switch.module
    original: Callable[..., Tensor] = module.forward
    weight, bias = (switch.tensors.get(name, "") for name in ("weight", "bias"))

    def forward(inputs: Tensor) -> Tensor:
        plan = switch.plan()
        if plan is None:
            return original(inputs)
        if plan.alone is not None:
            gain, shift = plan.alone.get(weight, module.weight), plan.alone.get(bias, module.bias)
            return functional.layer_norm(inputs, module.normalized_shape, gain, shift, module.eps)
        plan.per_row(len(inputs), switch.name)
        shape = inputs.shape
        if inputs.dim() != 3 or len(inputs) != plan.count:
            inputs = inputs.reshape(plan.count, -1, shape[-1])  # (row, token, entry)
        out = functional.layer_norm(inputs, module.normalized_shape, None, None, module.eps)
        gain = plan.vectors(weight, norms[weight]) if weight else module.weight
        if module.bias is None:
            found = out * gain
        else:
            found = torch.addcmul(plan.vectors(bias, norms[bias]) if bias else module.bias, out, gain)
        found = found.to(out.dtype)  # under torch.autocast the inputs may be shorter than the weights
        return found if found.shape == shape else found.view(shape)

    return forward


def _rms_norm(switch: SwitchedLayer, norms: Mapping[str, Mapping[str, Tensor]]) -> Forward:
    module, weight = switch.module, switch.tensors["weight"]
    original: Callable[..., Tensor] = module.forward

    def forward(inputs: Tensor) -> Tensor:
        plan = switch.plan()
        if plan is None:
            return original(inputs)
        plan.per_row(len(inputs), switch.name)
        gain = plan.vectors(weight, norms[weight])
        if gain.dim() == 1:  # the same for all rows
            return _with_weight(module, gain, inputs)
        shape = inputs.shape
        if len(inputs) != plan.count:
            inputs = inputs.reshape(plan.count, -1, *shape[1:])
        gain = gain.view(plan.count, *[1] * (inputs.dim() - 2), -1)
        found = _with_weight(module, gain, inputs)
        return found if found.shape == shape else found.view(shape)

    return forward


def _takes_weights_of_rows(module: Any) -> bool:
    """Returns whether a norm can be given a weight for each row, as it multiplies entry by entry."""
    weight: Tensor = module.weight.detach()
    rows = torch.arange(6 * len(weight), dtype=torch.float32).sin().view(2, 3, -1).to(weight)
    weights = torch.stack([weight, weight.flip(0) + 1])
    try:
        together = _with_weight(module, weights[:, None], rows)
        alone = [_with_weight(module, own, row[None]) for own, row in zip(weights, rows, strict=True)]
    except (RuntimeError, TypeError, IndexError):
        return False
    return together.shape == rows.shape and torch.allclose(together, torch.cat(alone), rtol=1e-2)


def _with_weight(module: nn.Module, weight: Tensor, inputs: Tensor) -> Tensor:
    """Returns the output of a norm by the root mean square under another weight, or one for each row.

    Those of transformers differ in what else they compute, such as a weight of one more, and run as they are.
    """
    if isinstance(module, nn.RMSNorm):
        out = functional.rms_norm(inputs, module.normalized_shape, None, module.eps)
        return (out * weight).to(out.dtype)
    own = object.__new__(type(module))
    own.__dict__ = {**module.__dict__, "_parameters": {"weight": weight}}
    found: Tensor = type(module).forward(own, inputs)
    return found


def _other(switch: SwitchedLayer) -> Forward:
    """Swaps the parameters while the layer runs, so only one thread at a time may run it."""
    module, original, lock = switch.module, switch.module.forward, RLock()
    base = {**dict(module.named_parameters()), **dict(module.named_buffers())}  # a tied tensor once
    switched = {name: tensor for name, tensor in switch.tensors.items() if name in base}
    swap = TensorSwap(module, {name: base[name] for name in switched})

    @wraps(original)
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
            outputs = []
            try:
                with switch.plans.using(None):
                    for run in plan.row_runs:
                        swap.put(
                            {name: plan.weight(run.number, own, base[name]) for name, own in switched.items()}
                        )
                        given, named = inputs, options
                        if len(plan.row_runs) > 1:
                            rows = slice(run.start * per_row, run.stop * per_row)
                            given, named = take_rows((inputs, options), rows, length)
                        outputs.append(original(*given, **named))
            finally:
                swap.put({})
        counts = [run.stop - run.start for run in plan.row_runs]
        return join_rows(outputs, counts) if len(outputs) > 1 else outputs[0]

    return forward
