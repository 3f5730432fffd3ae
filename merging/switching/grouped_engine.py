"""The grouped engine: rows of equal mixtures are answered together, by a module that holds their weights.

Its cost is one small forward pass for each mixture, plus rewriting the weights for each new mixture. Some
modules are kept; the least recently used one is rewritten in place: what its tasks changed is restored to the
base's values, then the new tasks' deltas are added. So a weight is always the base's plus the same additions
in the same order, whatever the module held before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.models.replica import replica
from flexswitch.merging.switching.activations import Ids
from flexswitch.merging.switching.batch_plan import ActivePlan, BatchPlan
from flexswitch.merging.switching.batch_rows import join_rows, run, take_rows
from flexswitch.merging.switching.csr import CsrMatrix
from flexswitch.merging.switching.delta_matrix import DeltaMatrix
from flexswitch.merging.switching.heads import Head, install_heads
from flexswitch.merging.switching.mixtures import Factors
from flexswitch.merging.switching.own_buffers import Buffers, install_buffers
from flexswitch.merging.switching.task_deltas import TaskDeltas
from flexswitch.merging.task_vectors.rounding import rounded


@dataclass(eq=False)
class _HeldModule:
    """A module with its own copy of the weights that tasks change, and the mixture that they hold."""

    module: nn.Module
    weights: Mapping[str, Tensor]
    plans: ActivePlan
    factors: Factors = ()
    users: int = 0


class GroupedEngine:
    """Modules for as many mixtures as fit into a cache. Thread-safe: a module in use is not rewritten."""

    def __init__(
        self,
        module: nn.Module,
        names: Mapping[str, str],
        heads: Mapping[str, Sequence[Head]],
        buffers: Mapping[str, Sequence[Buffers]],
        deltas: TaskDeltas,
        cache_bytes: int,
    ) -> None:
        """names: tensor → the module's name for it. At least one module is kept, whatever its size."""
        self._module, self._deltas = module, deltas
        self._heads, self._buffers = heads, buffers
        state = module.state_dict(keep_vars=True)
        self._base = {name: state[inside] for name, inside in names.items()}
        size = sum(tensor.numel() * tensor.element_size() for tensor in self._base.values())
        self.capacity = max(1, cache_bytes // max(1, size))
        self._held: list[_HeldModule] = []  # the most recently used last
        self._lock = Lock()

    def answer(self, batch: Any, plan: BatchPlan) -> Any:
        """Returns the module's output for a batch, each row under its own mixture and head."""
        outputs, order = self._by_mixture(batch, plan, run)
        return join_rows(outputs, order)

    def generate(self, batch: Mapping[str, Tensor], plan: BatchPlan, **options: Any) -> Tensor:
        """Returns the tokens that the module's `generate` gives, each sequence under its prompt's mixture.

        Raises: InputError where it gives something else.
        """
        outputs, order = self._by_mixture(batch, plan, lambda module, own: module.generate(**own, **options))
        if not all(isinstance(found, Tensor) for found in outputs):
            raise InputError("engine='grouped' generates tokens only; leave out return_dict_in_generate")
        settings = getattr(self._module, "generation_config", None)
        end = options.get("pad_token_id", getattr(settings, "pad_token_id", None)) or 0
        longest = max(found.shape[1] for found in outputs)
        equal = [functional.pad(found, (0, longest - found.shape[1]), value=end) for found in outputs]
        together = torch.cat(equal)  # each prompt has as many rows as sequences are wanted of it
        return together.view(plan.count, -1, longest)[order.to(together.device)].flatten(0, 1)

    def _by_mixture(
        self, batch: Any, plan: BatchPlan, call: Callable[[Any, Any], Any]
    ) -> tuple[list[Any], Tensor]:
        """Returns the results of `call` for the rows of each mixture, and the order that sorts all rows."""
        outputs, rows = [], []
        for number, factors in enumerate(plan.factors):
            own = np.flatnonzero(plan.mixture_of == number)
            heads = None if plan.heads is None else plan.heads[own]
            with self._borrowed(factors) as held, held.plans.using(_plan_of_heads(len(own), heads)):
                outputs.append(call(held.module, take_rows(batch, torch.from_numpy(own), plan.count)))
            rows.append(torch.from_numpy(own))
        return outputs, torch.argsort(torch.cat(rows))

    @contextmanager
    def _borrowed(self, factors: Factors) -> Iterator[_HeldModule]:
        with self._lock:
            held = self._find(factors)
            held.users += 1
        try:
            yield held
        finally:
            with self._lock:
                held.users -= 1

    def _find(self, factors: Factors) -> _HeldModule:
        """Returns a module with this mixture: one that holds it, a rewritten idle one, or a new one."""
        found = next((each for each in self._held if each.factors == factors), None)
        if found is None:
            idle = next((each for each in self._held if not each.users), None)
            if idle is None or len(self._held) < self.capacity:
                idle = self._new_module()
            else:
                self._held.remove(idle)  # so that none is kept of which only some tensors are rewritten
            self._rewrite(idle, factors)
            found = idle
        else:
            self._held.remove(found)
        self._held.append(found)
        while len(self._held) > self.capacity and not self._held[0].users:
            del self._held[0]  # there were more threads than modules
        return found

    def _new_module(self) -> _HeldModule:
        plans, module = ActivePlan(), replica(self._module)
        own = {
            id(tensor): tensor.detach().clone(memory_format=torch.contiguous_format)
            for tensor in self._base.values()
        }
        for owner in module.modules():
            for name, parameter in list(owner.named_parameters(recurse=False)):
                if id(parameter) in own:
                    setattr(owner, name, nn.Parameter(own[id(parameter)], requires_grad=False))
            for name, buffer in list(owner.named_buffers(recurse=False)):
                if id(buffer) in own:
                    setattr(owner, name, own[id(buffer)])
        install_heads(module, self._heads, plans)
        install_buffers(module, self._buffers, plans)
        return _HeldModule(module, {name: own[id(tensor)] for name, tensor in self._base.items()}, plans)

    def _rewrite(self, held: _HeldModule, factors: Factors) -> None:
        old = [self._deltas[task] for task, _ in held.factors]
        new = [(self._deltas[task], factor) for task, factor in factors]
        for name, weights in held.weights.items():
            base = self._base[name].detach()
            rows = weights.shape[0] if weights.dim() > 1 else 1
            added = [(deltas[name], factor) for deltas, factor in new if name in deltas]
            if weights.device.type == "cpu" and weights.dtype == torch.float32:
                target, source = (part.reshape(rows, -1).numpy() for part in (weights, base))
                _restore([deltas[name] for deltas in old if name in deltas], target, source)
                for matrix, factor in added:
                    matrix.add_to(target, factor)
                continue
            wide = base.reshape(rows, -1).to(torch.promote_types(base.dtype, torch.float32), copy=True)
            for matrix, factor in added:
                delta = matrix.dense().to(wide.device)
                wide.add_(delta.view(wide.shape), alpha=factor)
            weights.copy_(rounded(wide.view(weights.shape), base, weights.dtype, name))
        held.factors = factors


def _restore(added: Sequence[DeltaMatrix], weights: FloatArray, base: FloatArray) -> None:
    """Restores the base's values wherever these deltas may have changed a weight."""
    sparse = [matrix for matrix in added if isinstance(matrix, CsrMatrix)]
    if len(sparse) < len(added):
        np.copyto(weights, base)
        return
    for matrix in sparse:
        matrix.restore(weights, base)


def _plan_of_heads(count: int, heads: Ids | None) -> BatchPlan:
    return BatchPlan(np.zeros((1, 0), np.float32), np.zeros(count, np.int64), {}, heads)
