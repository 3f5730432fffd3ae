"""Which tasks answer which rows of a batch, as the layers of a switched module see it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from threading import local
from typing import NamedTuple

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

Factors = tuple[tuple[int, float], ...]  # (task, λ·w) of the tasks in a mixture, which tell it from others
Weights = Mapping[str, Tensor]  # tensor → θ + λ Σ w τ under one mixture, in the base's shape and dtype


@dataclass(eq=False)
class TaskRows:
    """One task's share in a batch.

    number: its column in the weights; deltas: tensor → delta matrix; rows: the rows with a weight other than
    0, rising; factors: λ·w of each such row, float32.
    """

    number: int
    deltas: Mapping[str, DeltaMatrix]
    rows: Ids
    factors: FloatArray
    padding: Padding | None = None
    _tokens: tuple[int, Ids, FloatArray] | None = None
    _within: dict[tuple[int, int, int], tuple[Ids, FloatArray]] = field(default_factory=dict)

    def tokens(self, per_row: int) -> tuple[Ids, FloatArray]:
        """Returns the positions of these rows' tokens, without padding, and each token's factor.

        Positions are those in the result of `BatchPlan.unpad`.
        """
        if self._tokens is None or self._tokens[0] != per_row:
            if self.padding is not None and self.padding.covers(per_row):
                found = self.padding.positions(self.rows, self.factors)
            else:
                positions = (self.rows[:, None] * per_row + np.arange(per_row)).reshape(-1)
                found = positions, np.repeat(self.factors, per_row)
            self._tokens = per_row, *found
        return self._tokens[1:]

    def within(self, chosen: NDArray[np.bool_]) -> "TaskRows":
        """Returns the task's share in some of the rows; chosen: (row,) of the batch."""
        own = chosen[self.rows]
        return TaskRows(self.number, self.deltas, self.rows[own], self.factors[own], self.padding)

    def tokens_within(self, per_row: int, start: int, stop: int) -> tuple[Ids, FloatArray]:
        """Returns those of `tokens` with positions from `start` to before `stop`; cached for all layers."""
        key = per_row, start, stop
        if key not in self._within:
            positions, factors = self.tokens(per_row)
            own = slice(*np.searchsorted(positions, (start, stop)))
            self._within[key] = positions[own], factors[own]
        return self._within[key]


class TokenOrder(NamedTuple):
    """The tokens of a batch, those of equal weights together.

    order, inverse: (token,), the tokens in that order and the way back, None where they are so already;
    parts: the held mixture of each run of tokens, -1 for none, and where it starts and stops.
    """

    order: Tensor | None
    inverse: Tensor | None
    parts: list[tuple[int, int, int]]


@dataclass(eq=False)
class BatchPlan:
    """The rows of a batch, the tasks that answer them, and each row's head.

    count: the number of rows; mixtures: (mixture, task) float32, the distinct rows of the weights times λ;
    mixture_of: (row,), the mixture of each row; heads: (row,), the number of the task whose head
    and buffers it has, -1 for no task, or None for the module's own; held: mixture → its weights, by which
    layers multiply instead of the base's and the deltas.
    """

    count: int
    tasks: Sequence[TaskRows]
    mixtures: FloatArray
    mixture_of: Ids
    heads: Ids | None = None
    padding: Padding | None = None
    held: Mapping[int, Weights] = field(default_factory=dict)
    _layer_input: LayerInput | None = None
    _orders: dict[int, TokenOrder] = field(default_factory=dict)
    _vectors: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def factors(self) -> list[Factors]:
        """The tasks of each mixture."""
        return [factors_of(mixture) for mixture in self.mixtures]

    def hold(self, weights: Mapping[Factors, Weights]) -> None:
        """Makes layers multiply by the weights of some mixtures, before they use the plan."""
        self.held = {number: weights[own] for number, own in enumerate(self.factors) if own in weights}

    @property
    def alone(self) -> Weights | None:
        """The weights that all rows share, None where they are not held or there are several."""
        return self.held[0] if len(self.mixtures) == 1 and self.held else None

    def token_counts(self, per_row: int) -> NDArray[np.int64]:
        """Returns the number of each mixture's tokens without padding, (mixture,)."""
        of_row = np.full(self.count, per_row)
        if self.padding is not None and self.padding.covers(per_row):
            of_row = self.padding.mask.sum(1)
        return np.bincount(self.mixture_of, of_row, len(self.mixtures)).astype(np.int64)

    @cached_property
    def others(self) -> Sequence[TaskRows]:
        """The tasks' shares in the rows whose mixture is not held."""
        if not self.held:
            return self.tasks
        rest = ~np.isin(self.mixture_of, list(self.held))
        return [found for task in self.tasks if len((found := task.within(rest)).rows)] if rest.any() else ()

    def token_order(self, per_row: int, device: torch.device) -> TokenOrder:
        """Returns the tokens of `unpad` by their held mixtures; per_row: the tokens of a row."""
        if per_row not in self._orders:
            group = np.where(np.isin(self.mixture_of, list(self.held)), self.mixture_of, -1)  # (row,)
            is_padded = self.padding is not None and self.padding.covers(per_row)
            of_token = group[self.padding.rows] if self.padding and is_padded else group.repeat(per_row)
            order = inverse = None
            if (of_token[1:] < of_token[:-1]).any():
                order = torch.from_numpy(np.argsort(of_token, kind="stable"))
                inverse = torch.argsort(order).to(device)
                of_token, order = of_token[order.numpy()], order.to(device)
            starts = np.flatnonzero(np.diff(of_token, prepend=-2)).tolist()
            stops = [*starts[1:], len(of_token)]
            parts = [(int(of_token[start]), start, stop) for start, stop in zip(starts, stops, strict=False)]
            parts = parts or [(-1, 0, 0)]  # padding only
            self._orders[per_row] = TokenOrder(order, inverse, parts)
        return self._orders[per_row]

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

    def per_row(self, length: int, name: str) -> int:
        """Returns a first dimension's length for each row. Raises: InputError on a remainder."""
        if length % self.count:
            raise InputError(
                f"the module '{name}' is given a first dimension of {length}, expected a multiple of the "
                f"batch's {self.count} rows: use engine='grouped'"
            )
        return length // self.count

    def vectors(self, name: str, base: Tensor) -> Tensor:
        """Returns θ + λ Σ w τ of a vector, (entry,) where all rows share a mixture, else (row, 1, entry).

        base: (entry,), whose dtype it has.
        """
        if name not in self._vectors:
            if len(self.held) == len(self.mixtures):
                found = torch.stack([self.held[number].get(name, base) for number in range(len(self.held))])
            else:
                own = [task for task in self.tasks if name in task.deltas]
                if not own:
                    return base
                stacked = np.stack([task.deltas[name].dense().view(-1).numpy() for task in own])
                added = self.mixtures[:, [task.number for task in own]] @ stacked  # (mixture, entry)
                found = rounded_sum(base, torch.from_numpy(added), name)
            if len(found) > 1:
                found = found[torch.from_numpy(self.mixture_of).to(base.device)][:, None]
            self._vectors[name] = found if len(self.mixtures) > 1 else found[0]
        return self._vectors[name]

    def weight(self, mixture: int, name: str, base: Tensor) -> Tensor:
        """Returns θ + λ Σ w τ of a tensor under one of the mixtures, in the base's shape and dtype."""
        if mixture in self.held:
            return self.held[mixture].get(name, base)
        deltas = {task.number: task.deltas for task in self.tasks}
        return mixed(base, [(deltas[task], factor) for task, factor in self.factors[mixture]], name)


def factors_of(mixture: FloatArray) -> Factors:
    """Returns the tasks of a mixture, (task,), with their factors."""
    return tuple((int(task), float(mixture[task])) for task in np.flatnonzero(mixture))


def mixed(base: Tensor, tasks: Sequence[tuple[Mapping[str, DeltaMatrix], float]], name: str) -> Tensor:
    """Returns base + Σ factor · τ, computed in float32 or wider and rounded once to the base's dtype.

    tasks: each task's delta matrices, and its factor; name: the tensor's.
    """
    own = [(deltas[name], factor) for deltas, factor in tasks if name in deltas]
    if base.dtype == torch.float32 and base.device.type == "cpu":
        found = base.detach().clone(memory_format=torch.contiguous_format)
        for delta, factor in own:
            delta.add_to(found.view(delta.shape).numpy(), factor)
        return found
    total = torch.zeros(base.numel(), device=base.device)
    for delta, factor in own:
        total.add_(delta.dense().to(base.device).reshape(-1), alpha=factor)
    return rounded_sum(base.detach(), total.view(base.shape), name)


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
    numbers: dict[bytes, int] = {}
    mixture_of = [
        numbers.setdefault(row.tobytes(), len(numbers)) for row in weights + np.float32(0)
    ]  # not -0
    mixtures = np.frombuffer(b"".join(numbers), np.float32).reshape(len(numbers), weights.shape[1])
    tasks = []
    for task in np.flatnonzero((weights != 0).any(0)):
        rows = np.flatnonzero(weights[:, task])
        factors = np.ascontiguousarray(weights[rows, task])
        tasks.append(TaskRows(int(task), deltas[int(task)], rows, factors, padding))
    return BatchPlan(len(weights), tasks, mixtures, np.array(mixture_of, np.int64), heads, padding)
