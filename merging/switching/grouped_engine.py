"""The grouped engine: rows of equal mixtures are answered together, by a module that holds their weights.

Its cost is one small forward pass for each mixture, plus making the weights of each new mixture, of which as
many are kept as fit into a cache. It is for modules that are not given the rows of a batch first.
"""

from collections.abc import Callable, Mapping, Sequence
from threading import RLock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flexswitch.codecs.errors import InputError
from flexswitch.merging.models.replica import replica
from flexswitch.merging.switching.activations import Ids
from flexswitch.merging.switching.batch_plan import ActivePlan, BatchPlan
from flexswitch.merging.switching.batch_rows import check_rows_apart, join_rows, run, take_rows
from flexswitch.merging.switching.heads import Head, install_heads
from flexswitch.merging.switching.held_terms import nothing_held
from flexswitch.merging.switching.held_weights import HeldWeights
from flexswitch.merging.switching.own_buffers import Buffers, install_buffers
from flexswitch.merging.switching.task_deltas import TaskDeltas
from flexswitch.merging.switching.tensor_swap import TensorSwap


class GroupedEngine:
    """A module that takes on the weights of one mixture after the other. Thread-safe: threads take turns."""

    def __init__(
        self,
        module: nn.Module,
        names: Mapping[str, str],
        heads: Mapping[str, Sequence[Head]],
        buffers: Mapping[str, Sequence[Buffers]],
        deltas: TaskDeltas,
        cache_bytes: int,
    ) -> None:
        """names: tensor → the module's name for it; cache_bytes: for the weights of mixtures."""
        self._module, self._plans, self._lock = replica(module), ActivePlan(), RLock()
        state = self._module.state_dict(keep_vars=True)
        base = {name: state[inside] for name, inside in names.items()}
        self._swap = TensorSwap(self._module, base)
        self.held = HeldWeights(
            {name: tensor.detach() for name, tensor in base.items()}, deltas, cache_bytes, 0
        )
        install_heads(self._module, heads, self._plans)
        install_buffers(self._module, buffers, self._plans)

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
        """Returns the results of `call` for the rows of each mixture, and the order that sorts all rows.

        Raises: InputError where there are several mixtures, and rows cannot be taken apart.
        """
        outputs, rows = [], []
        if len(plan.factors) > 1:
            check_rows_apart(batch, plan.count)
        for number, factors in enumerate(plan.factors):
            own = np.flatnonzero(plan.mixture_of == number)
            heads = None if plan.heads is None else plan.heads[own]
            given = take_rows(batch, torch.from_numpy(own), plan.count)
            with self._lock, self._plans.using(_plan_of_heads(len(own), heads)):
                try:
                    self._swap.put(self.held.of(factors))
                    outputs.append(call(self._module, given))
                finally:
                    self._swap.put({})
            rows.append(torch.from_numpy(own))
        return outputs, torch.argsort(torch.cat(rows))


def _plan_of_heads(count: int, heads: Ids | None) -> BatchPlan:
    mixtures = np.zeros((1, 0), np.float32)
    return BatchPlan(mixtures, np.zeros(count, np.int64), {}, nothing_held(1), heads)
