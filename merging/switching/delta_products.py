"""Adds the products with the tasks' deltas to a layer's output: compiled on the CPU, by torch elsewhere.

Sums are in float32, or float64 for such a module; the output is rounded once to the dtype of the base's
product, which is the module's, or that of torch.autocast.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.threads import run_in_parts
from flexswitch.merging.switching.activations import Activations, LayerInput
from flexswitch.merging.switching.batch_plan import BatchPlan
from flexswitch.merging.switching.bit_planes import BitPlaneMatrix
from flexswitch.merging.switching.csr import CsrMatrix
from flexswitch.merging.switching.delta_matrix import DeltaMatrix, untransposed
from flexswitch.merging.switching.float32 import Float32Matrix
from flexswitch.merging.switching.int8 import Int8Matrix, Int8Term
from flexswitch.merging.switching.int8 import add_products as add_int8_products
from flexswitch.merging.switching.low_rank_matrix import LowRankMatrix
from flexswitch.merging.switching.multiple_matrix import MultipleMatrix
from flexswitch.merging.switching.sum_matrix import SumMatrix, base_factor
from flexswitch.merging.switching.task_rows import TaskRows

_PRODUCTS = (CsrMatrix, Int8Matrix, Float32Matrix, LowRankMatrix, SumMatrix)
_TABLES = (*_PRODUCTS, MultipleMatrix)
_COMPILED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def add_products(
    tasks: Sequence[TaskRows],
    weight: str | None,
    bias: str | None,
    given: LayerInput,
    out: Tensor,
    per_row: int,
    base_bias: Tensor | None,
) -> None:
    """Adds Σ_k w_k (τ_k·x + τ_k') to a linear layer's output in place: first multiples, int8 and CSR last.

    weight, bias: the names of its tensors, None where no task changes them; out: (token, out), contiguous,
    the base's output; per_row: the tokens of a row; base_bias: in `out`, None without one.
    """
    csr: list[tuple[TaskRows, CsrMatrix, Tensor]] = []
    int8: list[Int8Term] = []
    with _summed(out) as total:
        _add_multiples(tasks, weight, total, per_row, base_bias)
        for task in tasks:
            matrix, vector = (task.deltas.get(name or "") for name in (weight, bias))
            inner = None if matrix is None else _without_multiple(untransposed(matrix))
            if inner is None and vector is None:
                continue
            shift = torch.zeros(out.shape[1]) if vector is None else vector.dense().view(-1)
            if not isinstance(inner, _PRODUCTS) or not _is_compiled(out):
                _add_by_torch(task, inner, shift, given.tokens, total, per_row)
            elif isinstance(inner, CsrMatrix):
                csr.append((task, inner, shift))
            elif isinstance(inner, Int8Matrix):
                int8.append(Int8Term(inner, *task.tokens(per_row), shift.numpy()))
            else:
                positions, factors = task.tokens(per_row)
                inner.add_product(given.activations, positions, factors, shift.numpy(), total.numpy())
        if int8:
            add_int8_products(int8, given.activations, total.numpy())
        if csr:
            _add_csr(csr, given.activations, total.numpy(), per_row)


def _add_multiples(
    tasks: Sequence[TaskRows], weight: str | None, total: Tensor, per_row: int, base_bias: Tensor | None
) -> None:
    """Adds Σ_k w_k f_k θ·x, of the multiples f_k of the base's weights that are in τ_k."""
    shares = np.zeros(len(total), np.float32)
    for task in tasks:
        matrix = task.deltas.get(weight or "")
        factor = 0.0 if matrix is None else base_factor(untransposed(matrix))
        if factor:
            positions, factors = task.tokens(per_row)
            shares[positions] += factor * factors
    if shares.any():
        product = total if base_bias is None else total - base_bias
        total.addcmul_(product, torch.from_numpy(shares).to(total)[:, None])


def _without_multiple(matrix: DeltaMatrix) -> DeltaMatrix | None:
    """Returns what is left of a delta matrix beside a multiple of the base's, None if that is nothing."""
    if isinstance(matrix, MultipleMatrix):
        return None
    return matrix.rest if isinstance(matrix, SumMatrix) else matrix


def _add_by_torch(
    task: TaskRows,
    matrix: DeltaMatrix | None,
    shift: Tensor,
    inputs: Tensor,
    total: Tensor,
    per_row: int,
) -> None:
    where, shares = (torch.from_numpy(part).to(total.device) for part in task.tokens(per_row))
    added = shift.to(total)
    if isinstance(matrix, BitPlaneMatrix):
        matrix.add_product(inputs, where, shares, added, total)
        return
    if matrix is not None:
        delta = matrix.dense().to(total.device, inputs.dtype)
        product = torch.nn.functional.linear(inputs[where], delta)
        added = product.to(total.dtype) + added
    total.index_add_(0, where, added * shares[:, None])


def _add_csr(
    tasks: Sequence[tuple[TaskRows, CsrMatrix, Tensor]], inputs: Activations, total: FloatArray, per_row: int
) -> None:
    """Divides the batch's tokens among threads; a thread adds all tasks to its tokens."""

    def work(start: int, stop: int) -> None:
        for task, matrix, shift in tasks:
            matrix.add_product(inputs, *task.tokens_within(per_row, start, stop), shift.numpy(), total)

    run_in_parts(work, len(total), total.size + inputs.values.size)


def add_embeddings(plan: BatchPlan, name: str, ids: Tensor, out: Tensor, per_row: int) -> None:
    """Adds Σ_k w_k τ_k[id] to an embedding's output in place; out: (token, width)."""
    with _summed(out) as total:
        for task in plan.tasks:
            if name not in task.deltas:
                continue
            positions, factors = task.tokens(per_row)
            table = task.deltas[name]
            if _is_compiled(out) and isinstance(table, _TABLES):
                table.add_rows(ids.numpy(), positions, factors, total.numpy())
                continue
            where, weights = (torch.from_numpy(part).to(out.device) for part in (positions, factors))
            if isinstance(table, BitPlaneMatrix):
                rows = table.rows(ids[where])
            else:
                rows = table.dense().to(out.device)[ids[where]]
            total.index_add_(0, where, rows.to(total.dtype) * weights[:, None])


def _is_compiled(out: Tensor) -> bool:
    return out.device.type == "cpu" and out.dtype in _COMPILED_DTYPES


@contextmanager
def _summed(out: Tensor) -> Iterator[Tensor]:
    """Yields a float32 or float64 tensor to add to, and copies it to `out` where that is another."""
    total = out if out.dtype in (torch.float32, torch.float64) else out.to(torch.float32)
    device = out.device.type
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
        yield total
    if total is not out:
        out.copy_(total)
