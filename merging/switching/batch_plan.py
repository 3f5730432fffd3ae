"""Which tasks answer which rows of a batch, as the layers of a switched module see it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import local
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.switching.activations import Ids, LayerInput
from flexswitch.merging.switching.delta_matrix import DeltaMatrix
from flexswitch.merging.switching.padding import Padding
from flexswitch.merging.switching.task_deltas import TaskDeltas
from flexswitch.merging.switching.unpadded_tensor import UnpaddedTensor, padded, real_tokens
from flexswitch.merging.task_vectors.rounding import rounded


@dataclass(eq=False)
class TaskRows:
    """One task's share in a batch.

    number: its column in the weights; deltas: tensor → delta matrix; rows: the rows with a weight other than
    0, rising; factors: λ·w of each such row, float32; merged: tensor → θ + τ, for layers to use instead.
    """

    number: int
    deltas: Mapping[str, DeltaMatrix]
    rows: Ids
    factors: FloatArray
    padding: Padding | None = None
    merged: Mapping[str, Tensor] = field(default_factory=dict)
    _tokens: tuple[int, Ids, FloatArray] | None = None
    _within: dict[tuple[int, int, int], tuple[Ids, FloatArray]] = field(default_factory=dict)

    def token_count(self, per_row: int) -> int:
        """Returns the number of these rows' tokens, without padding; per_row: the tokens of a row."""
        if self.padding is None or not self.padding.covers(per_row):
            return len(self.rows) * per_row
        return int(self.padding.mask[self.rows].sum())

    def tokens(self, per_row: int) -> tuple[Ids, FloatArray]:
        """Returns the positions of these rows' tokens, without padding, and each token's factor.

        Positions are those in the result of `BatchPlan.unpad`.
        """
        if self._tokens is None or self._tokens[0] != per_row:
            self._tokens = per_row, *tokens_of(self.rows, self.factors, self.padding, per_row)
        return self._tokens[1:]

    def tokens_within(self, per_row: int, start: int, stop: int) -> tuple[Ids, FloatArray]:
        """Returns those of `tokens` with positions from `start` to before `stop`; cached for all layers."""
        key = per_row, start, stop
        if key not in self._within:
            positions, factors = self.tokens(per_row)
            own = slice(*np.searchsorted(positions, (start, stop)))
            self._within[key] = positions[own], factors[own]
        return self._within[key]


def tokens_of(
    rows: Ids, factors: FloatArray, padding: Padding | None, per_row: int
) -> tuple[Ids, FloatArray]:
    """Returns the positions of some rows' tokens, without padding, and each token's factor."""
    if padding is not None and padding.covers(per_row):
        return padding.positions(rows, factors)
    positions = (rows[:, None] * per_row + np.arange(per_row)).reshape(-1)
    return positions, np.repeat(factors, per_row)


@dataclass(eq=False)
class BatchPlan:
    """The rows of a batch, the tasks that answer them, and each row's head.

    count: the number of rows; mixtures: (mixture, task) float32, the distinct rows of the weights times λ;
    mixture_of: (row,), the mixture of each row; heads: (row,), the number of the task whose head
    and buffers it has, -1 for no task, or None for the module's own; token_groups: a cache of
    merged_linear.py.
    """

    count: int
    tasks: Sequence[TaskRows]
    mixtures: FloatArray
    mixture_of: Ids
    heads: Ids | None = None
    padding: Padding | None = None
    token_groups: dict[Any, Any] = field(default_factory=dict)
    _layer_input: LayerInput | None = None

    def use_merged(self, weights: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Lets layers use some tasks' merged weights: task's number → tensor → θ + τ."""
        for task in self.tasks:
            task.merged = weights.get(task.number, {})

    def layer_input(self, tensor: Tensor, per_row: int) -> LayerInput:
        """Returns a layer's input (…, column), in which a row has `per_row` tokens.

        The previous layer's is returned where that was given the same, unchanged tensor.
        """
        real = real_tokens(tensor)
        source: Tensor = padded(tensor) if real is None else real
        has_version = self.padding is None or not self.padding.is_padded(source)
        if self._layer_input is None or not has_version or not self._layer_input.is_from(source):
            tokens = self.unpad(source.reshape(-1, source.shape[-1]), per_row) if real is None else real
            self._layer_input = LayerInput(source, source._version, tokens)
        return self._layer_input

    def unpad(self, tokens: Tensor, per_row: int) -> Tensor:
        """Returns the tokens (token, …) that layers compute: all of them, or those that are not padding."""
        return self.padding.unpad(tokens) if self.padding and self.padding.covers(per_row) else tokens

    def pad(self, tokens: Tensor, shape: torch.Size, per_row: int) -> Tensor:
        """Returns the output for the tokens of `unpad` as (*shape, …), with zeros for padding.

        On the CPU this is an unpadded tensor where possible; GPU kernels need the whole memory.
        """
        padding = self.padding
        if padding is None or not padding.covers(per_row):
            return tokens.view(*shape, *tokens.shape[1:])
        if padding.removed and shape == padding.mask.shape and tokens.device.type == "cpu":
            return UnpaddedTensor(tokens, padding)
        return padding.pad(tokens).view(*shape, *tokens.shape[1:])

    def removed(self, per_row: int) -> int:
        """Returns the number of tokens that `unpad` removes."""
        return self.padding.removed if self.padding and self.padding.covers(per_row) else 0

    def per_row(self, length: int, name: str) -> int:
        """Returns a first dimension's length for each row. Raises: InputError on a remainder."""
        if length % self.count:
            raise InputError(
                f"the module '{name}' is given a first dimension of {length}, expected a multiple of the "
                f"batch's {self.count} rows: use engine='grouped'"
            )
        return length // self.count

    def row_vectors(self, name: str, base: Tensor) -> Tensor:
        """Returns base + λ Σ w τ of a vector for each row, (row, entry), in the base's dtype."""
        total = np.zeros((self.count, base.numel()), np.float32)
        for task in self.tasks:
            if name in task.deltas:
                total[task.rows] += task.factors[:, None] * task.deltas[name].dense().view(-1).numpy()
        return rounded_sum(base, torch.from_numpy(total), name)

    def mixed_weight(self, mixture: int, name: str, base: Tensor) -> Tensor:
        """Returns base + λ Σ w τ of a tensor under one of the mixtures, in the base's shape and dtype."""
        total = torch.zeros(base.numel())
        row = int(np.flatnonzero(self.mixture_of == mixture)[0])
        for task in self.tasks:
            if name in task.deltas and row in task.rows:
                factor = float(task.factors[np.searchsorted(task.rows, row)])
                total.add_(task.deltas[name].dense().cpu().view(-1), alpha=factor)
        return rounded_sum(base, total.view(base.shape), name)


def rounded_sum(base: Tensor, delta: Tensor, name: str) -> Tensor:
    """Returns base + delta, computed in float32 or wider and rounded once to the base's dtype.

    name: the tensor's. Raises: InputError where the sum overflows, which is checked on the CPU only, since a
    GPU would have to be waited for.
    """
    total = base.to(torch.promote_types(base.dtype, torch.float32)) + delta.to(base.device)
    return rounded(total, base, base.dtype, name) if total.device.type == "cpu" else total.to(base.dtype)


class ActivePlan(local):
    """The plan of the batch that this thread's module is answering, if any."""

    current: BatchPlan | None = None

    @contextmanager
    def using(self, plan: BatchPlan | None) -> Iterator[None]:
        """Makes the module's layers follow a plan in this thread."""
        before, self.current = self.current, plan
        try:
            yield
        finally:
            self.current = before


def batch_plan(
    weights: FloatArray, deltas: TaskDeltas, heads: Ids | None, mask: NDArray[np.bool_] | None
) -> BatchPlan:
    """Returns the plan of a batch.

    weights: (row, task) float32, λ·w; heads: as `BatchPlan` has them; mask: (row, token), False for padding,
    or None.
    """
    padding = None if mask is None else Padding(mask)
    mixtures, mixture_of = np.unique(weights, axis=0, return_inverse=True)
    tasks = []
    for task in np.flatnonzero((weights != 0).any(0)):
        rows = np.flatnonzero(weights[:, task])
        factors = np.ascontiguousarray(weights[rows, task])
        tasks.append(TaskRows(int(task), deltas[int(task)], rows, factors, padding))
    return BatchPlan(len(weights), tasks, mixtures, mixture_of.reshape(-1), heads, padding)
