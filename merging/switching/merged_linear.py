"""A linear layer's output by the merged weights of some tasks: θ + λ Σ w τ as a sum of whole products.

With r = 1 - Σ λw over those tasks, a token's output is r θx + Σ λw (θ + τ)x: a token of a single task takes
one product. The other tasks' deltas are added afterwards (delta_products.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.switching.activations import Ids
from flexswitch.merging.switching.batch_plan import BatchPlan, TaskRows, rounded_sum, tokens_of

_EPSILON = 2.0**-20  # a share of the base that is no more than the rounding of weights to float32


@dataclass(frozen=True, eq=False)
class TokenGroup:
    """The tokens that are multiplied by one matrix: a task's merged one, or the base's for None.

    positions: (token,) int64, of which the first `written` are written and the others added; factors:
    (token,), None where all are 1.
    """

    task: TaskRows | None
    positions: Tensor
    factors: Tensor | None
    written: int


@dataclass(frozen=True, eq=False)
class MergedLayer:
    """A linear layer.

    weight, bias: the names of its tensors, where tasks change them; original: the base's forward pass;
    own_bias: the base's bias; is_transposed: whether its weight is (in, out).
    """

    weight: str
    bias: str | None
    original: Callable[[Tensor], Tensor]
    own_bias: Tensor | None
    is_transposed: bool

    def of_task(self, task: TaskRows, tokens: Tensor) -> Tensor:
        """Returns the outputs under a task's merged weight, (token, out)."""
        matrix, bias = task.merged[self.weight], self.own_bias
        if bias is not None and self.bias is not None and self.bias in task.deltas:
            bias = rounded_sum(bias, task.deltas[self.bias].dense().view(-1), self.bias)
        return functional.linear(tokens, matrix.t() if self.is_transposed else matrix, bias)


def merged_output(
    plan: BatchPlan, tasks: Sequence[TaskRows], layer: MergedLayer, tokens: Tensor, per_row: int
) -> Tensor:
    """Returns r θx + Σ λw (θ + τ)x of every token, (token, out), zeros for padding.

    tasks: those with merged weights for the layer; tokens: (token, in), of which a row has `per_row`. The sum
    is in float32 where the tokens are narrower, to be rounded once.
    """
    groups = _token_groups(plan, tasks, per_row)
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    is_whole = sum(group.written for group in groups) == len(tokens)
    out: Tensor | None = None
    for group in groups:
        inputs = tokens.index_select(0, group.positions)
        if group.task is None:
            product = layer.original(inputs).to(dtype)
        else:
            product = layer.of_task(group.task, inputs).to(dtype)
        if group.factors is not None:
            product *= group.factors[:, None]
        if out is None:
            shape = len(tokens), product.shape[1]
            out = product.new_empty(shape) if is_whole else product.new_zeros(shape)
        out.index_copy_(0, group.positions[: group.written], product[: group.written])
        if group.written < len(product):
            out.index_add_(0, group.positions[group.written :], product[group.written :])
    return layer.original(tokens).to(dtype) if out is None else out  # padding only


def shares_of_base(count: int, tasks: Sequence[TaskRows]) -> NDArray[np.float64]:
    """Returns r = 1 - Σ λw over some tasks, (row,), 0 where it is no more than rounding."""
    shares = np.ones(count)
    for task in tasks:
        shares[task.rows] -= task.factors
    shares[np.abs(shares) <= _EPSILON] = 0
    return shares


def _token_groups(plan: BatchPlan, tasks: Sequence[TaskRows], per_row: int) -> list[TokenGroup]:
    """Returns the tokens of each matrix, cached for all layers with as many tokens a row."""
    key = per_row, tuple(task.number for task in tasks)
    if key not in plan.token_groups:
        shares = shares_of_base(plan.count, tasks)
        rows = np.flatnonzero(shares)
        found = [
            _group(plan, None, rows, shares[rows].astype(np.float32), np.ones(len(rows), np.bool_), per_row)
        ]
        is_written = shares != 0
        for task in tasks:
            found.append(_group(plan, task, task.rows, task.factors, ~is_written[task.rows], per_row))
            is_written[task.rows] = True
        plan.token_groups[key] = [group for group in found if len(group.positions)]
    groups: list[TokenGroup] = plan.token_groups[key]
    return groups


def _group(
    plan: BatchPlan,
    task: TaskRows | None,
    rows: Ids,
    factors: FloatArray,
    is_first: NDArray[np.bool_],
    per_row: int,
) -> TokenGroup:
    first = tokens_of(rows[is_first], factors[is_first], plan.padding, per_row)
    other = tokens_of(rows[~is_first], factors[~is_first], plan.padding, per_row)
    positions = torch.from_numpy(np.concatenate([first[0], other[0]]))
    scales = torch.from_numpy(np.concatenate([first[1], other[1]]))
    return TokenGroup(task, positions, None if bool((scales == 1).all()) else scales, len(first[0]))
