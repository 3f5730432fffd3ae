"""A layer's output where some tasks' matrices are merged with the base's: θ + λ Σ w τ by whole products.

With r = 1 - Σ λw over those tasks, a token's output is r θx + Σ λw (θ + τ)x: a token of one task alone takes
one product. What other tasks add to it comes afterwards (delta_products.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.switching.batch_plan import BatchPlan, TaskRows, rounded_sum, tokens_of
from flexswitch.merging.switching.csr import Ids

_NOTHING = 2.0**-20  # a share of the base that rounding shares to float32 leaves over


@dataclass(frozen=True, eq=False)
class Part:
    """Tokens that go through one matrix: task None stands for the base's.

    places: (token,) int64, the first `firsts` are written, the others added to what is there; factors:
    (token,), None where all are 1.
    """

    task: TaskRows | None
    places: Tensor
    factors: Tensor | None
    firsts: int


@dataclass(frozen=True, eq=False)
class MergedLayer:
    """A linear layer. weight, bias: its units' names, where tasks change them; original: the base's forward
    pass, own_bias: its bias; is_turned: whether its matrix is (in, out).
    """

    weight: str
    bias: str | None
    original: Callable[[Tensor], Tensor]
    own_bias: Tensor | None
    is_turned: bool

    def of_task(self, task: TaskRows, tokens: Tensor) -> Tensor:
        """Returns the outputs under a task's merged matrix, (token, out)."""
        matrix, bias = task.matrices[self.weight], self.own_bias
        if bias is not None and self.bias is not None and self.bias in task.units:
            bias = rounded_sum(bias, task.units[self.bias].dense().view(-1))
        return functional.linear(tokens, matrix.t() if self.is_turned else matrix, bias)


def merged_product(
    plan: BatchPlan, tasks: Sequence[TaskRows], layer: MergedLayer, tokens: Tensor, each: int
) -> Tensor:
    """Returns r θx + Σ λw (θ + τ)x of every token, (token, out), zeros for padding.

    tasks: whose matrices of the layer are merged; tokens: (token, in), `each` a row. The sum is in float32
    where the tokens are narrower, to be rounded once.
    """
    parts = _parts(plan, tasks, each)
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    is_whole = sum(part.firsts for part in parts) == len(tokens)
    out: Tensor | None = None
    for part in parts:
        taken = tokens.index_select(0, part.places)
        if part.task is None:
            product = layer.original(taken).to(dtype)
        else:
            product = layer.of_task(part.task, taken).to(dtype)
        if part.factors is not None:
            product *= part.factors[:, None]
        if out is None:
            shape = len(tokens), product.shape[1]
            out = product.new_empty(shape) if is_whole else product.new_zeros(shape)
        out.index_copy_(0, part.places[: part.firsts], product[: part.firsts])
        if part.firsts < len(product):
            out.index_add_(0, part.places[part.firsts :], product[part.firsts :])
    return layer.original(tokens).to(dtype) if out is None else out  # all is padding


def shares_of_base(count: int, tasks: Sequence[TaskRows]) -> NDArray[np.float64]:
    """Returns r = 1 - Σ λw over some tasks, (row,), 0 where only rounding is left of it."""
    shares = np.ones(count)
    for task in tasks:
        shares[task.rows] -= task.factors
    shares[np.abs(shares) <= _NOTHING] = 0
    return shares


def _parts(plan: BatchPlan, tasks: Sequence[TaskRows], each: int) -> list[Part]:
    """Returns who computes which tokens; the same for all layers of as many tokens a row."""
    key = each, tuple(task.number for task in tasks)
    if key not in plan.parts:
        shares = shares_of_base(plan.count, tasks)
        rows = np.flatnonzero(shares)
        found = [_part(plan, None, rows, shares[rows].astype(np.float32), np.ones(len(rows), np.bool_), each)]
        is_written = shares != 0
        for task in tasks:
            found.append(_part(plan, task, task.rows, task.factors, ~is_written[task.rows], each))
            is_written[task.rows] = True
        plan.parts[key] = [part for part in found if len(part.places)]
    parts: list[Part] = plan.parts[key]
    return parts


def _part(
    plan: BatchPlan,
    task: TaskRows | None,
    rows: Ids,
    factors: FloatArray,
    is_first: NDArray[np.bool_],
    each: int,
) -> Part:
    first_places, first_factors = tokens_of(rows[is_first], factors[is_first], plan.padding, each)
    other_places, other_factors = tokens_of(rows[~is_first], factors[~is_first], plan.padding, each)
    places = torch.from_numpy(np.concatenate([first_places, other_places]))
    scales = np.concatenate([first_factors, other_factors])
    return Part(task, places, None if (scales == 1).all() else torch.from_numpy(scales), len(first_places))
