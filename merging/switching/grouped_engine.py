"""The grouped engine: rows of equal weights are answered together, by a module that holds those weights.

Such modules are kept, the least recently used being turned into the next: in place, what its tasks had
changed is put back to the base's values and the new tasks' parts are added. So a weight is always the base's
plus the same additions in the same order, whatever the module held before.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.models.replica import replica
from flexswitch.merging.switching.batch_plan import ActivePlan, BatchPlan
from flexswitch.merging.switching.batch_rows import join_rows, take_rows
from flexswitch.merging.switching.csr import CsrMatrix, Ids
from flexswitch.merging.switching.delta_matrix import DeltaMatrix
from flexswitch.merging.switching.heads import Head, install_heads
from flexswitch.merging.switching.task_deltas import TaskDeltas

Factors = tuple[tuple[int, float], ...]  # (task, λ·w) of the tasks in a mixture, by their numbers


@dataclass(eq=False)
class _Holder:
    """A module with its own copy of the weights that tasks change, and what they hold now."""

    module: nn.Module
    weights: Mapping[str, Tensor]
    plans: ActivePlan
    factors: Factors = ()
    users: int = 0


class GroupedEngine:
    """Serves several threads at a time; a module that one of them uses is not turned meanwhile."""

    def __init__(
        self,
        module: nn.Module,
        names: Mapping[str, str],
        heads: Mapping[str, Sequence[Head]],
        units: TaskDeltas,
        cache_bytes: int,
    ) -> None:
        """names: unit → the module's name for it. One module is kept whatever its size."""
        self._module, self._names, self._heads, self._units = module, names, heads, units
        state = module.state_dict(keep_vars=True)
        self._base = {unit: state[inside] for unit, inside in names.items()}
        size = sum(tensor.numel() * tensor.element_size() for tensor in self._base.values())
        self.most = max(1, cache_bytes // max(1, size))
        self._holders: list[_Holder] = []  # the most recently used last
        self._lock = Lock()

    def answer(self, batch: Any, plan: BatchPlan) -> Any:
        """Returns the module's output for a batch, each row under its weights and head."""
        outputs, rows = [], []
        for number, vector in enumerate(plan.vectors):
            own = np.flatnonzero(plan.vector_of == number)
            heads = None if plan.heads is None else plan.heads[own]
            factors = tuple((int(task), float(vector[task])) for task in np.flatnonzero(vector))
            given = take_rows(batch, torch.from_numpy(own), plan.count)
            with self._holding(factors) as holder, holder.plans.following(_heads_alone(len(own), heads)):
                outputs.append(holder.module(given) if isinstance(given, Tensor) else holder.module(**given))
            rows.append(torch.from_numpy(own))
        return join_rows(outputs, torch.argsort(torch.cat(rows)))

    @contextmanager
    def _holding(self, factors: Factors) -> Iterator[_Holder]:
        with self._lock:
            holder = self._find(factors)
            holder.users += 1
        try:
            yield holder
        finally:
            with self._lock:
                holder.users -= 1

    def _find(self, factors: Factors) -> _Holder:
        """Returns a module of these weights: one that has them, an idle one turned, or a new one."""
        found = next((each for each in self._holders if each.factors == factors), None)
        if found is None:
            idle = next((each for each in self._holders if not each.users), None)
            if idle is None or len(self._holders) < self.most:
                idle = self._new_holder()
                self._holders.append(idle)
            self._turn(idle, factors)
            found = idle
        self._holders.remove(found)
        self._holders.append(found)
        while len(self._holders) > self.most and not self._holders[0].users:
            del self._holders[0]  # more threads than modules were there for a while
        return found

    def _new_holder(self) -> _Holder:
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
        return _Holder(module, {unit: own[id(tensor)] for unit, tensor in self._base.items()}, plans)

    def _turn(self, holder: _Holder, factors: Factors) -> None:
        old = [self._units[task] for task, _ in holder.factors]
        new = [(self._units[task], factor) for task, factor in factors]
        for unit, weights in holder.weights.items():
            base = self._base[unit].detach()
            rows = weights.shape[0] if weights.dim() > 1 else 1
            added = [(units[unit], factor) for units, factor in new if unit in units]
            if weights.device.type == "cpu" and weights.dtype == torch.float32:
                target, source = (part.reshape(rows, -1).numpy() for part in (weights, base))
                _take_back([units[unit] for units in old if unit in units], target, source)
                for part, factor in added:
                    part.add_to(target, factor)
                continue
            wide = base.reshape(rows, -1).to(torch.promote_types(base.dtype, torch.float32), copy=True)
            for part, factor in added:
                delta = part.dense().to(wide.device)
                wide.add_(delta.view(wide.shape), alpha=factor)
            weights.copy_(wide.view(weights.shape))
        holder.factors = factors


def _take_back(added: Sequence[DeltaMatrix], weights: FloatArray, base: FloatArray) -> None:
    """Puts the base's values wherever these units may have changed a weight."""
    few = [unit for unit in added if isinstance(unit, CsrMatrix)]
    if len(few) < len(added):
        np.copyto(weights, base)
        return
    for unit in few:
        unit.take_back(weights, base)


def _heads_alone(count: int, heads: Ids | None) -> BatchPlan:
    return BatchPlan(count, (), np.zeros((1, 0), np.float32), np.zeros(count, np.int64), heads)
