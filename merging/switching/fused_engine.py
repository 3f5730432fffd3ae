"""The fused engine: one pass for the whole batch, to which every layer adds the tasks' deltas.

Its cost is one forward pass of the base, plus each task's delta products over the tokens that it answers.
"""

from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flexswitch.codecs.errors import NotByRowsError
from flexswitch.merging.models.replica import replica
from flexswitch.merging.switching.batch_first import RowCheck, check_rows, distinct_rows
from flexswitch.merging.switching.batch_plan import ActivePlan, BatchPlan
from flexswitch.merging.switching.batch_rows import (
    consists_of_rows,
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
from flexswitch.merging.switching.generation import first_pass, is_greedy
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
        self._plans, self._source = ActivePlan(), module
        self._lock = Lock()
        self._checked: RowCheck | None = None
        self.module = replica(module)
        state = self.module.state_dict(keep_vars=True)
        name_of = {id(state[inside]): name for name, inside in names.items()}  # tied tensors have one id
        switches = [
            SwitchedLayer(name, owner, _tensor_names(owner, name_of), self._plans)
            for name, owner in self.module.named_modules()
            if any(id(tensor) in name_of for tensor in _tensors(owner, recurse=False).values())
        ]
        self._layers = [switch.name for switch in switches]
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

    def answers(self, batch: Any, plan: BatchPlan) -> bool:
        """Returns whether all layers are known to be given the rows of a batch first, or all are alike.

        The first batch with two distinct rows decides.
        """
        found = self._row_check(batch)
        return len(plan.factors) < 2 if found is None else found.bad_layer is None

    def _row_check(self, batch: Any) -> RowCheck | None:
        with self._lock:
            if self._checked is None and (rows := distinct_rows(batch)) is not None:
                self._checked = check_rows(self._source, self._layers, batch, rows)
            return self._checked

    def answer(self, batch: Any, plan: BatchPlan) -> Any:
        """Returns the module's output for a batch, each row under its own mixture and head.

        Rows of one mixture are brought together and put back, where batch and output consist of rows.
        """
        found = self._row_check(batch)
        can_move = found is not None and found.output_follows and consists_of_rows(batch, plan.count)
        order = plan.order() if can_move else None
        if order is None:
            return self.call(batch, plan, lambda module: run(module, batch))
        given = take_rows(batch, torch.from_numpy(order), plan.count)
        output = self.call(given, plan.in_order(order), lambda module: run(module, given))
        return reordered(output, torch.from_numpy(np.argsort(order)))

    def call(self, batch: Any, plan: BatchPlan, call: Callable[[Any], Any]) -> Any:
        """Returns the result of a call of the module for a batch, each row under its own mixture.

        Raises: NotByRowsError where a layer is not given the rows of a batch first, or is given a cache.
        """
        found = self._row_check(batch)
        if found is not None and found.bad_layer is not None:
            raise NotByRowsError(
                f"the module '{found.bad_layer}' is not given the rows of a batch first, or has a state or "
                "cache: use engine='grouped'"
            )
        with self._plans.using(plan if plan.count else None):
            return padded(call(self.module))

    def generate(self, batch: Mapping[str, Tensor], plan: BatchPlan, **options: Any) -> Any:
        """Returns the result of the module's `generate`, each sequence under its prompt's mixture.

        Prompts of one mixture are brought together as in `answer`, unless the options may count rows.
        """
        can_move = is_greedy(self._source, options) and consists_of_rows(batch, plan.count)
        order, first = plan.order() if can_move else None, first_pass(self._source, batch)
        if order is None:
            return self.call(first, plan, lambda module: module.generate(**batch, **options))
        given = take_rows(batch, torch.from_numpy(order), plan.count)
        found = self.call(first, plan.in_order(order), lambda module: module.generate(**given, **options))
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
