"""Adds the tasks' parts to a layer's output: by compiled passes on the CPU, by torch elsewhere.

Sums are those of float32, or float64, whatever the module's dtype; the output is rounded to it once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.threads import run_in_parts
from flexswitch.merging.switching.activations import Activations
from flexswitch.merging.switching.batch_plan import BatchPlan, LayerInput, TaskRows
from flexswitch.merging.switching.bit_planes import BitPlaneMatrix
from flexswitch.merging.switching.csr import CsrMatrix
from flexswitch.merging.switching.delta_matrix import DeltaMatrix, TransposedMatrix
from flexswitch.merging.switching.float32 import Float32Matrix
from flexswitch.merging.switching.int8 import Int8Matrix, Int8Term
from flexswitch.merging.switching.int8 import add_products as add_code_products

_COMPILED_FORMS = (CsrMatrix, Int8Matrix, Float32Matrix)
_COMPILED = (torch.float32, torch.bfloat16, torch.float16)


def add_products(
    tasks: Sequence[TaskRows], weight: str | None, bias: str | None, given: LayerInput, out: Tensor, each: int
) -> None:
    """Adds Σ_k w_k (τ_k·x + τ_k') to a linear layer's output in place; weight, bias: its units, if any.

    out: (token, out) and contiguous, `each` tokens a row. Codes and sparse products come last.
    """
    sparse: list[tuple[TaskRows, CsrMatrix, Tensor]] = []
    codes: list[Int8Term] = []
    with _summed(out) as total:
        for task in tasks:
            matrix, vector = (task.units.get(unit or "") for unit in (weight, bias))
            if matrix is None and vector is None:
                continue
            shift = torch.zeros(out.shape[1]) if vector is None else vector.dense().view(-1)
            inner = matrix.inner if isinstance(matrix, TransposedMatrix) else matrix
            if not isinstance(inner, _COMPILED_FORMS) or not _is_compiled(out):
                _add_by_torch(task, inner, shift, given.tokens, total, each)
            elif isinstance(inner, CsrMatrix):
                sparse.append((task, inner, shift))
            elif isinstance(inner, Int8Matrix):
                codes.append(Int8Term(inner, *task.tokens(each), shift.numpy()))
            else:
                places, factors = task.tokens(each)
                inner.add_product(given.inputs, places, factors, shift.numpy(), total.numpy())
        if codes:
            add_code_products(codes, given.inputs, total.numpy())
        if sparse:
            _add_sparse(sparse, given.inputs, total.numpy(), each)


def _add_by_torch(
    task: TaskRows,
    matrix: DeltaMatrix | None,
    shift: Tensor,
    inputs: Tensor,
    total: Tensor,
    each: int,
) -> None:
    where, shares = (torch.from_numpy(part).to(total.device) for part in task.tokens(each))
    added = shift.to(total)
    if isinstance(matrix, BitPlaneMatrix):
        matrix.add_product(inputs, where, shares, added, total)
        return
    if matrix is not None:
        delta = matrix.dense().to(total.device, inputs.dtype)
        product = torch.nn.functional.linear(inputs[where], delta)
        added = product.to(total.dtype) + added
    total.index_add_(0, where, added * shares[:, None])


def _add_sparse(
    tasks: Sequence[tuple[TaskRows, CsrMatrix, Tensor]], inputs: Activations, total: FloatArray, each: int
) -> None:
    """Deals the batch's tokens out to threads: each takes the same tokens through all tasks."""

    def work(start: int, stop: int) -> None:
        for task, matrix, shift in tasks:
            matrix.add_product(inputs, *task.tokens_within(each, start, stop), shift.numpy(), total)

    run_in_parts(work, len(total), total.size + inputs.values.size)


def add_embeddings(plan: BatchPlan, unit: str, ids: Tensor, out: Tensor, each: int) -> None:
    """Adds Σ_k w_k τ_k[id] to a table's output in place; ids: (token,), out: (token, width), contiguous."""
    with _summed(out) as total:
        for task in plan.tasks:
            if unit not in task.units:
                continue
            places, factors = task.tokens(each)
            table = task.units[unit]
            if _is_compiled(out) and isinstance(table, _COMPILED_FORMS):
                table.add_rows(ids.numpy(), places, factors, total.numpy())
                continue
            where, weights = (torch.from_numpy(part).to(out.device) for part in (places, factors))
            if isinstance(table, BitPlaneMatrix):
                rows = table.rows(ids[where])
            else:
                rows = table.dense().to(out.device)[ids[where]]
            total.index_add_(0, where, rows.to(total.dtype) * weights[:, None])


def _is_compiled(out: Tensor) -> bool:
    return out.device.type == "cpu" and out.dtype in _COMPILED


@contextmanager
def _summed(out: Tensor) -> Iterator[Tensor]:
    """Gives a tensor to add to in float32 or float64, and writes it back where it is not `out` itself."""
    total = out if out.dtype in (torch.float32, torch.float64) else out.to(torch.float32)
    yield total
    if total is not out:
        out.copy_(total)
