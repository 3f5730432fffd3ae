"""The fused engine: one pass for the whole batch, to which every layer adds the tasks' deltas.

Its cost is one forward pass of the base, plus each task's delta products over the tokens that it answers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flexswitch.merging.models.replica import replica
from flexswitch.merging.switching.batch_plan import ActivePlan, BatchPlan
from flexswitch.merging.switching.batch_rows import (
    can_move,
    reordered,
    run,
    take_rows,
)
from flexswitch.merging.switching.fused_layers import (
    SwitchedLayer,
    has_vectors,
    is_embedding,
    is_linear,
    is_transposed,
    switched_forward,
)
from flexswitch.merging.switching.generation import is_greedy
from flexswitch.merging.switching.heads import Head, install_heads
from flexswitch.merging.switching.own_buffers import Buffers, install_buffers
from flexswitch.merging.switching.unpadded_tensor import padded


class FusedEngine:
    """A module that answers each row of a batch under its own mixture; the base's weights never change.

    matrices: the weights of linear layers, tensor → the base's; transposed: those of layers that multiply by
    the transpose; own: the tensors of all layers but embeddings, of which layers use a mixture's own ones
    where the plan holds them. Thread-safe.
    """

    def __init__(
        self,
        module: nn.Module,
        names: Mapping[str, str],
        heads: Mapping[str, Sequence[Head]],
        buffers: Mapping[str, Sequence[Buffers]],
    ) -> None:
        """names: tensor → the module's name for it; heads, buffers: a layer's name → those of each task."""
        self._plans, self._other_lengths = ActivePlan(), set[int]()
        self.module = replica(module)
        state = self.module.state_dict(keep_vars=True)
        name_of = {id(state[inside]): name for name, inside in names.items()}  # tied tensors have one id
        switches = [
            SwitchedLayer(name, owner, _tensor_names(owner, name_of), self._plans)
            for name, owner in self.module.named_modules()
            if any(id(tensor) in name_of for tensor in _tensors(owner, recurse=False).values())
        ]
        linear = [switch for switch in switches if is_linear(switch.module) and "weight" in switch.tensors]
        self.matrices = {switch.tensors["weight"]: switch.module.weight for switch in linear}
        self.own = {
            tensor: _tensors(switch.module, recurse=True)[name].detach()
            for switch in switches
            if not is_embedding(switch.module)
            for name, tensor in switch.tensors.items()
        }
        self.transposed = {switch.tensors["weight"] for switch in linear if is_transposed(switch.module)}
        by_dtype: dict[torch.dtype, dict[str, Tensor]] = {}
        for switch in switches:
            for name, tensor in switch.tensors.items() if has_vectors(switch.module) else ():
                own = getattr(switch.module, name).detach()
                by_dtype.setdefault(own.dtype, {})[tensor] = own
        norms = {name: group for group in by_dtype.values() for name in group}
        for switch in switches:
            switch.module.forward = switched_forward(switch, norms)
        install_heads(self.module, heads, self._plans)
        install_buffers(self.module, buffers, self._plans)

    def answer(self, batch: Any, plan: BatchPlan, moves: bool) -> Any:
        """Returns the module's output for a batch, each row under its own mixture and head.

        moves: whether rows of one mixture may be brought together and put back, where all parts of the batch
        have rows.
        """
        order = plan.order() if moves and can_move(batch, plan.count) else None
        if order is None:
            return self.call(plan, lambda module: run(module, batch))
        given = take_rows(batch, torch.from_numpy(order), plan.count)
        output = self.call(plan.in_order(order), lambda module: run(module, given))
        return reordered(output, torch.from_numpy(np.argsort(order)))

    def call(self, plan: BatchPlan, call: Callable[[Any], Any]) -> Any:
        """Returns the result of a call of the module for a batch, each row under its own mixture.

        Raises: NotByRowsError where a layer is given another number of rows.
        """
        if plan.padding is not None and plan.padding.mask.shape[1] in self._other_lengths:
            plan = plan.without_padding()  # layers may be given as many entries that are no tokens
        with self._plans.using(plan if plan.count else None):
            found = padded(call(self.module))
        self._other_lengths |= plan.other_lengths
        return found

    def generate(self, batch: Mapping[str, Tensor], plan: BatchPlan, moves: bool, **options: Any) -> Any:
        """Returns the result of the module's `generate`, each sequence under its prompt's mixture.

        Prompts of one mixture are brought together as in `answer`, unless the options may count rows.
        """
        order = None
        if moves and is_greedy(self.module, options) and can_move(batch, plan.count):
            order = plan.order()
        if order is None:
            return self.call(plan, lambda module: module.generate(**batch, **options))
        given = take_rows(batch, torch.from_numpy(order), plan.count)
        found = self.call(plan.in_order(order), lambda module: module.generate(**given, **options))
        back = torch.from_numpy(np.argsort(order)).to(found.device)
        return found.view(plan.count, -1, found.shape[-1])[back].flatten(0, 1)


def _tensor_names(owner: nn.Module, name_of: Mapping[int, str]) -> dict[str, str]:
    """Returns the task vectors' names for the tensors of a module and its submodules."""
    tensors = _tensors(owner, recurse=True)
    return {name: name_of[id(tensor)] for name, tensor in tensors.items() if id(tensor) in name_of}


def _tensors(owner: nn.Module, recurse: bool) -> dict[str, Tensor]:
    return {
        **dict(owner.named_parameters(recurse=recurse, remove_duplicate=False)),
        **dict(owner.named_buffers(recurse=recurse, remove_duplicate=False)),
    }
