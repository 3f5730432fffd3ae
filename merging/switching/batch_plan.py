"""Which tasks answer which rows of a batch, as the layers of a switched module see it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from threading import local
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.switching.activations import Activations
from flexswitch.merging.switching.csr import Ids
from flexswitch.merging.switching.delta_matrix import DeltaMatrix
from flexswitch.merging.switching.padding import Padding
from flexswitch.merging.switching.task_deltas import TaskDeltas
from flexswitch.merging.switching.unpadded_tensor import UnpaddedTensor, real_tokens, whole


@dataclass(eq=False)
class TaskRows:
    """One task's part in a batch. rows: those it has a share in, rising; factors: λ·w of each, float32.

    matrices: those of the base with the task's part in them, by unit, where layers are to take them.
    """

    number: int
    units: Mapping[str, DeltaMatrix]
    rows: Ids
    factors: FloatArray
    padding: Padding | None = None
    matrices: Mapping[str, Tensor] = field(default_factory=dict)
    _tokens: tuple[int, Ids, FloatArray] | None = None
    _within: dict[tuple[int, int, int], tuple[Ids, FloatArray]] = field(default_factory=dict)

    def count(self, each: int) -> int:
        """Returns how many tokens these rows have, `each` a row; padding is left out."""
        if self.padding is None or not self.padding.fits(each):
            return len(self.rows) * each
        return int(self.padding.marks[self.rows].sum())

    def tokens(self, each: int) -> tuple[Ids, FloatArray]:
        """Returns where these rows' tokens lie, `each` a row, and each one's factor; padding is left out.

        Places are those in what `BatchPlan.taken` gives.
        """
        if self._tokens is None or self._tokens[0] != each:
            self._tokens = each, *tokens_of(self.rows, self.factors, self.padding, each)
        return self._tokens[1:]

    def tokens_within(self, each: int, start: int, stop: int) -> tuple[Ids, FloatArray]:
        """Returns those of `tokens` that lie from `start` to before `stop`, found once for all layers."""
        key = each, start, stop
        if key not in self._within:
            places, factors = self.tokens(each)
            own = slice(*np.searchsorted(places, (start, stop)))
            self._within[key] = places[own], factors[own]
        return self._within[key]


def tokens_of(rows: Ids, factors: FloatArray, padding: Padding | None, each: int) -> tuple[Ids, FloatArray]:
    """Returns where some rows' tokens lie, `each` a row, and each one's factor; padding is left out."""
    if padding is not None and padding.fits(each):
        return padding.places(rows, factors)
    places = (rows[:, None] * each + np.arange(each)).reshape(-1)
    return places, np.repeat(factors, each)


@dataclass(eq=False)
class LayerInput:
    """A layer's inputs. tensor, version: what they were made of; tokens: (token, column)."""

    tensor: Tensor
    version: int
    tokens: Tensor

    @cached_property
    def inputs(self) -> Activations:
        """The tokens as compiled products take them."""
        return Activations(self.tokens.to(torch.float32).contiguous().numpy())

    def is_of(self, tensor: Tensor) -> bool:
        """Returns whether these are what a tensor holds."""
        return self.tensor is tensor and self.version == tensor._version


@dataclass(eq=False)
class BatchPlan:
    """A batch's rows: how many, the tasks in play, and whose head answers each.

    vectors: (distinct, task) float32, the different weights there are, λ among them; vector_of: (row,), which
    of them a row has; heads: (row,), a task's number, or None where the module keeps its own; parts: what
    merged_linear.py works out once for many layers.
    """

    count: int
    tasks: Sequence[TaskRows]
    vectors: FloatArray
    vector_of: Ids
    heads: Ids | None = None
    padding: Padding | None = None
    parts: dict[Any, Any] = field(default_factory=dict)
    _given: LayerInput | None = None

    def merge(self, matrices: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Lets layers take some tasks' matrices with the base's in them; task's number → unit → matrix."""
        for task in self.tasks:
            task.matrices = matrices.get(task.number, {})

    def given(self, tensor: Tensor, each: int) -> LayerInput:
        """Returns a layer's inputs, (…, column) of `each` tokens a row.

        What was made of them is used again where the next layer is given the same tensor, unchanged.
        """
        real = real_tokens(tensor)
        source: Tensor = whole(tensor) if real is None else real
        is_counted = self.padding is None or not self.padding.is_noted(source)
        if self._given is None or not is_counted or not self._given.is_of(source):
            tokens = self.taken(source.reshape(-1, source.shape[-1]), each) if real is None else real
            self._given = LayerInput(source, source._version, tokens)
        return self._given

    def taken(self, tokens: Tensor, each: int) -> Tensor:
        """Returns what layers compute of (token, …): all of it, or what is no padding."""
        return self.padding.taken(tokens) if self.padding and self.padding.fits(each) else tokens

    def placed(self, taken: Tensor, shape: torch.Size, each: int) -> Tensor:
        """Returns what layers computed of the tokens that `taken` gives, (*shape, …); what was left out is 0.

        On the CPU as an unpadded tensor where it can be: on devices kernels of all kinds read its memory.
        """
        padding = self.padding
        if padding is None or not padding.fits(each):
            return taken.view(*shape, *taken.shape[1:])
        if padding.left_out and shape == padding.marks.shape and taken.device.type == "cpu":
            return UnpaddedTensor(taken, padding)
        return padding.whole(taken).view(*shape, *taken.shape[1:])

    def left_out(self, each: int) -> int:
        """Returns how many tokens, of `each` a row, `taken` leaves out."""
        return self.padding.left_out if self.padding and self.padding.fits(each) else 0

    def each(self, length: int, name: str) -> int:
        """Returns how many of a first dimension a row has. Raises: InputError where that is no whole."""
        if length % self.count:
            raise InputError(
                f"the module '{name}' is given a first dimension of {length}, which is no multiple of the "
                f"batch's {self.count} rows; rows can't be told apart there: use engine='grouped'"
            )
        return length // self.count

    def mixed(self, unit: str, base: Tensor) -> Tensor:
        """Returns base + λ Σ w τ of a vector for each row, (row, entry), in the base's dtype."""
        total = np.zeros((self.count, base.numel()), np.float32)
        for task in self.tasks:
            if unit in task.units:
                total[task.rows] += task.factors[:, None] * task.units[unit].dense().view(-1).numpy()
        return rounded_sum(base, torch.from_numpy(total))

    def weights(self, number: int, unit: str, base: Tensor) -> Tensor:
        """Returns base + λ Σ w τ of a unit under one of the weight vectors, in the base's shape and dtype."""
        total = torch.zeros(base.numel())
        row = int(np.flatnonzero(self.vector_of == number)[0])
        for task in self.tasks:
            if unit in task.units and row in task.rows:
                factor = float(task.factors[np.searchsorted(task.rows, row)])
                total.add_(task.units[unit].dense().cpu().view(-1), alpha=factor)
        return rounded_sum(base, total.view(base.shape))


def rounded_sum(base: Tensor, delta: Tensor) -> Tensor:
    """Returns base + delta, computed in float32 or wider and rounded once to the base's dtype."""
    return (base.to(torch.promote_types(base.dtype, torch.float32)) + delta.to(base.device)).to(base.dtype)


class ActivePlan(local):
    """The plan of the batch that this thread's module is answering, if any."""

    current: BatchPlan | None = None

    @contextmanager
    def following(self, plan: BatchPlan | None) -> Iterator[None]:
        """Makes the module's layers follow a plan in this thread for as long as it lasts."""
        before, self.current = self.current, plan
        try:
            yield
        finally:
            self.current = before


def batch_plan(
    weights: FloatArray, units: TaskDeltas, heads: Ids | None, marks: NDArray[np.bool_] | None
) -> BatchPlan:
    """Returns the plan of a batch.

    weights: (row, task) float32, λ·w; heads: (row,), a task's number, or None; marks: (row, token), False for
    padding, or None.
    """
    padding = None if marks is None else Padding(marks)
    vectors, vector_of = np.unique(weights, axis=0, return_inverse=True)
    tasks = []
    for task in np.flatnonzero((weights != 0).any(0)):
        rows = np.flatnonzero(weights[:, task])
        factors = np.ascontiguousarray(weights[rows, task])
        tasks.append(TaskRows(int(task), units[int(task)], rows, factors, padding))
    return BatchPlan(len(weights), tasks, vectors, vector_of.reshape(-1), heads, padding)
