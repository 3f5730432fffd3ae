"""The grouped engine: rows of equal mixtures are answered together, by a module that holds their weights.

Its cost is one small forward pass for each mixture, plus making the weights of each new mixture, of which as
many are kept as fit into a cache. It is for modules that are not given the rows of a batch first.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import RLock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flexswitch.codecs.errors import InputError
from flexswitch.merging.models.replica import replica
from flexswitch.merging.switching.activations import Ids
from flexswitch.merging.switching.batch_plan import BatchPlan
from flexswitch.merging.switching.batch_rows import check_rows_apart, join_rows, run, take_rows
from flexswitch.merging.switching.generation import padding_token
from flexswitch.merging.switching.heads import Head
from flexswitch.merging.switching.held_weights import HeldWeights
from flexswitch.merging.switching.mixtures import Factors
from flexswitch.merging.switching.own_buffers import Buffers
from flexswitch.merging.switching.own_tensors import OwnTensors
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
        self._module, self._lock = replica(module), RLock()
        state = self._module.state_dict(keep_vars=True)
        base = {name: state[inside] for name, inside in names.items()}
        self._swap = TensorSwap(self._module, base)
        self.held = HeldWeights(
            {name: tensor.detach() for name, tensor in base.items()}, deltas, cache_bytes, 0
        )
        self._own = OwnTensors(self._module, heads, buffers)

    def answer(self, batch: Any, plan: BatchPlan) -> Any:
        """Returns the module's output for a batch, each row under its own mixture and head.

        Raises: InputError where there are several mixtures, and a part of the output has no rows.
        """
        groups = self._by_mixture(batch, plan, lambda module, own, _: run(module, own))
        if len(groups.outputs) == 1:
            return groups.outputs[0]
        return join_rows(groups.outputs, groups.counts, groups.order)

    def generate(self, batch: Mapping[str, Tensor], plan: BatchPlan, **options: Any) -> Any:
        """Returns the result of the module's `generate`, each sequence under its prompt's mixture.

        Raises: InputError where there are several mixtures, and it gives something else than tokens.
        """

        def generated(module: Any, own: Mapping[str, Tensor], rows: Ids) -> Any:
            return module.generate(**own, **_options_of_rows(options, rows))

        groups = self._by_mixture(batch, plan, generated)
        if len(groups.outputs) == 1:
            return groups.outputs[0]
        if not all(isinstance(found, Tensor) for found in groups.outputs):
            raise InputError("engine='grouped' generates tokens only; leave out return_dict_in_generate")
        longest = max(found.shape[1] for found in groups.outputs)
        end = padding_token(self._module, options)
        equal = [functional.pad(found, (0, longest - found.shape[1]), value=end) for found in groups.outputs]
        return join_rows(equal, groups.counts, groups.order)

    def under(
        self, factors: Factors, head: int | None, call: Callable[[Any], Any], once: bool = False
    ) -> Any:
        """Returns the result of a call of the module with the weights of one mixture.

        head: the task whose head and buffers it has, as `BatchPlan` has them, None for the module's own;
        once: whether the weights are not kept.
        """
        with self._lock:
            try:
                self._swap.put(self.held.made(factors) if once else self.held.of(factors))
                self._own.put(head)
                return call(self._module)
            finally:
                self._swap.put({})
                self._own.put(None)

    def _by_mixture(self, batch: Any, plan: BatchPlan, call: Callable[[Any, Any, Ids], Any]) -> "_Groups":
        """Returns the results of `call` for the rows of each mixture and head.

        Raises: InputError where there are several, and rows cannot be taken apart.
        """
        heads = [None] * plan.count if plan.heads is None else plan.heads.tolist()
        rows_of: dict[tuple[int, int | None], list[int]] = {}
        for row, pair in enumerate(zip(plan.mixture_of.tolist(), heads, strict=True)):
            rows_of.setdefault(pair, []).append(row)
        rows = [np.array(own) for own in rows_of.values()]
        if len(rows) > 1:
            check_rows_apart(batch, plan.count)
        outputs = []
        for (number, head), own in zip(rows_of, rows, strict=True):
            given = batch if len(rows) == 1 else take_rows(batch, torch.from_numpy(own), plan.count)
            outputs.append(self.under(plan.factors[number], head, partial(_called, call, given, own)))
        return _Groups(
            outputs, [len(own) for own in rows], torch.from_numpy(np.argsort(np.concatenate(rows)))
        )


class _Groups(NamedTuple):
    """The outputs of each mixture and head, how many rows each is of, and the order that sorts all rows."""

    outputs: list[Any]
    counts: list[int]
    order: Tensor


def _called(call: Callable[[Any, Any, Ids], Any], batch: Any, rows: Ids, module: Any) -> Any:
    return call(module, batch, rows)


def _options_of_rows(options: Mapping[str, Any], rows: Ids) -> dict[str, Any]:
    """Returns the options of `generate` for some rows of a batch; a function is told their numbers in it."""
    allowed = options.get("prefix_allowed_tokens_fn")
    if allowed is None:
        return dict(options)
    return {**options, "prefix_allowed_tokens_fn": lambda number, ids: allowed(int(rows[number]), ids)}
