"""Which tasks answer which rows of a batch, as the layers of a switched module see it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from threading import local

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.errors import NotByRowsError
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.switching.activations import Ids, LayerInput
from flexswitch.merging.switching.delta_matrix import DeltaMatrix
from flexswitch.merging.switching.held_terms import HeldTerms, Run, Sums, held_terms, nothing_held, runs_of
from flexswitch.merging.switching.mixtures import Factors, Weights, factors_of, mixed, rounded_sum
from flexswitch.merging.switching.padding import Padding
from flexswitch.merging.switching.task_deltas import TaskDeltas
from flexswitch.merging.switching.task_rows import TaskRows
from flexswitch.merging.switching.unpadded_tensor import UnpaddedTensor, padded, real_tokens


@dataclass(eq=False)
class BatchPlan:
    """The rows of a batch, the tasks that answer them, and each row's head.

    mixtures: (mixture, task) float32, the distinct rows of the weights times λ; mixture_of: (row,), the
    mixture of each row; deltas: task → delta matrices of the tasks in them; terms: the held weights by which
    layers multiply instead of the base's and the deltas; heads: (row,), the number of the task whose head and
    buffers it has, -1 for no task, or None for the module's own; scale: λ; other_lengths: the entries a row
    that layers were given, other than the tokens that the padding is of.
    """

    mixtures: FloatArray
    mixture_of: Ids
    deltas: Mapping[int, Mapping[str, DeltaMatrix]]
    terms: HeldTerms
    heads: Ids | None = None
    padding: Padding | None = None
    scale: float = 1.0
    other_lengths: set[int] = field(default_factory=set)
    _layer_input: LayerInput | None = None
    _runs: dict[int, list[Run]] = field(default_factory=dict)
    _sums_of: dict[int, Sums | None] = field(default_factory=dict)
    _vectors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(self.mixture_of)

    @cached_property
    def factors(self) -> list[Factors]:
        """The tasks of each mixture."""
        return [factors_of(mixture) for mixture in self.mixtures]

    @cached_property
    def changed(self) -> frozenset[str]:
        """The tensors that some task of the batch changes."""
        return frozenset().union(*self.deltas.values())

    def hold(self, weights: Mapping[Factors, Weights], summed: Collection[int] = ()) -> None:
        """Makes layers multiply by given weights of mixtures, before they use the plan.

        summed: the mixtures that may take a product with the weights of each of their tasks instead.
        """
        self.terms = held_terms(self.factors, weights, self.scale, summed)

    @property
    def alone(self) -> Weights | None:
        """The weights that all rows share, None where they are not held or there are several."""
        return self.terms.own(0) if len(self.mixtures) == 1 else None

    def order(self) -> Ids | None:
        """Returns the rows in an order that has those of one mixture together, None where they are so.

        Mixtures that multiply by the same weights follow each other.
        """
        keys = self.terms.place[self.mixture_of]
        return np.argsort(keys, kind="stable") if (keys[1:] < keys[:-1]).any() else None

    def in_order(self, order: Ids) -> "BatchPlan":
        """Returns the plan of the same batch with its rows in another order."""
        heads = None if self.heads is None else self.heads[order]
        padding = None if self.padding is None else Padding(self.padding.mask[order])
        own = self.mixture_of[order], self.deltas, self.terms
        return BatchPlan(self.mixtures, *own, heads, padding, self.scale, self.other_lengths)

    def without_padding(self) -> "BatchPlan":
        """Returns the plan of the same batch of which all tokens are computed."""
        return BatchPlan(
            self.mixtures, self.mixture_of, self.deltas, self.terms, self.heads, None, self.scale
        )

    def token_counts(self, per_row: int) -> NDArray[np.int64]:
        """Returns the number of each mixture's tokens without padding, (mixture,)."""
        of_row = np.full(self.count, per_row)
        if self.padding is not None and self.padding.covers(per_row):
            of_row = self.padding.mask.sum(1)
        return np.bincount(self.mixture_of, of_row, len(self.mixtures)).astype(np.int64)

    def row_counts(self) -> NDArray[np.int64]:
        """Returns the number of each mixture's rows, (mixture,)."""
        return np.bincount(self.mixture_of, minlength=len(self.mixtures))

    @cached_property
    def tasks(self) -> Sequence[TaskRows]:
        """The tasks' shares in the rows."""
        return self._shares(np.ones(self.count, np.bool_))

    @cached_property
    def others(self) -> Sequence[TaskRows]:
        """The tasks' shares in the rows whose mixture is not held."""
        is_held = self.terms.is_held
        return self._shares(~is_held[self.mixture_of]) if is_held.any() else self.tasks

    def _shares(self, chosen: NDArray[np.bool_]) -> Sequence[TaskRows]:
        found = []
        for task, deltas in self.deltas.items() if chosen.any() else ():
            factors = self.mixtures[self.mixture_of, task]  # (row,)
            rows = np.flatnonzero(chosen & (factors != 0))
            if len(rows):
                found.append(TaskRows(task, deltas, rows, factors[rows], self.padding))
        return found

    def runs(self, per_row: int) -> list[Run]:
        """Returns the runs of tokens in the result of `unpad` by the weights of their first product.

        per_row: the tokens of a row.
        """
        if per_row not in self._runs:
            of_tokens = self.terms.first[self._mixtures(per_row)]
            self._runs[per_row] = runs_of(of_tokens) or [Run(-1, 0, 0)]  # padding only
        return self._runs[per_row]

    def sums(self, per_row: int) -> Sums | None:
        """Returns how the products of tokens that have several are added up, None where none has."""
        if per_row not in self._sums_of:
            self._sums_of[per_row] = self.terms.sums(self._mixtures(per_row))
        return self._sums_of[per_row]

    def _mixtures(self, per_row: int) -> Ids:
        """Returns the mixture of each token in the result of `unpad`, (token,)."""
        if self.padding is not None and self.padding.covers(per_row):
            return self.mixture_of[self.padding.rows]
        return self.mixture_of.repeat(per_row)

    @cached_property
    def row_runs(self) -> list[Run]:
        """The runs of neighbouring rows of each mixture, held or not."""
        return runs_of(self.mixture_of)

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
            self.other_lengths.add(per_row)
            return tokens.view(*shape, *tokens.shape[1:])
        if padding.removed and shape == padding.mask.shape and tokens.device.type == "cpu":
            return UnpaddedTensor(tokens, padding)
        return padding.pad(tokens).view(*shape, *tokens.shape[1:])

    def per_row(self, length: int, name: str) -> int:
        """Returns a first dimension's length for each row. Raises: NotByRowsError on a remainder."""
        if length % self.count:
            raise NotByRowsError(
                f"the module '{name}' is given a first dimension of {length}, expected a multiple of the "
                f"batch's {self.count} rows: use engine='grouped'"
            )
        return length // self.count

    def vectors(self, name: str, together: Mapping[str, Tensor]) -> Tensor:
        """Returns θ + λ Σ w τ of a vector, (entry,) where all rows share a mixture, else (row, 1, entry).

        together: vectors of one dtype → the base's, which are computed at once, as each alone is short.
        """
        if name not in self._vectors:
            names = [each for each in together if each in self.changed]
            if name not in names:
                return together[name]
            held = [self.terms.own(number) for number in range(len(self.mixtures))]
            own = [weights for weights in held if weights is not None]
            if len(own) == len(held):
                found = torch.stack([torch.cat([weights[each] for each in names]) for weights in own])
            else:
                found = torch.cat([self._sums(each, together[each]) for each in names], 1)
            if len(found) > 1:
                found = found[torch.from_numpy(self.mixture_of).to(found.device)][:, None]
            else:
                found = found[0]
            parts = torch.split(found, [len(together[each]) for each in names], -1)
            self._vectors |= zip(names, parts, strict=True)
        return self._vectors[name]

    def _sums(self, name: str, base: Tensor) -> Tensor:
        """Returns θ + λ Σ w τ of a vector that is not held, (mixture, entry)."""
        own = [task for task, deltas in self.deltas.items() if name in deltas]
        stacked = np.stack([self.deltas[task][name].dense().view(-1).numpy() for task in own])
        return rounded_sum(base, torch.from_numpy(self.mixtures[:, own] @ stacked), name)

    def weight(self, mixture: int, name: str, base: Tensor) -> Tensor:
        """Returns θ + λ Σ w τ of a tensor under one of the mixtures, in the base's shape and dtype."""
        if (own := self.terms.own(mixture)) is not None:
            return own.get(name, base)
        return mixed(base, [(self.deltas[task], factor) for task, factor in self.factors[mixture]], name)


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
    weights: FloatArray,
    deltas: TaskDeltas,
    heads: Ids | None,
    mask: NDArray[np.bool_] | None,
    scale: float = 1.0,
) -> BatchPlan:
    """Returns the plan of a batch.

    weights: (row, task) float32, λ·w; heads, scale: as `BatchPlan` has them; mask: (row, token), False for
    padding, or None.
    """
    padding = None if mask is None else Padding(mask)
    numbers: dict[bytes, int] = {}
    mixture_of = [
        numbers.setdefault(row.tobytes(), len(numbers)) for row in weights + np.float32(0)
    ]  # not -0
    mixtures = np.frombuffer(b"".join(numbers), np.float32).reshape(len(numbers), weights.shape[1])
    own = {int(task): deltas[int(task)] for task in np.flatnonzero((mixtures != 0).any(0))}
    terms = nothing_held(len(mixtures))
    return BatchPlan(mixtures, np.array(mixture_of, np.int64), own, terms, heads, padding, scale)
