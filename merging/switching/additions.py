"""Adds the tasks' parts to a layer's output: by compiled passes on the CPU, by torch elsewhere.

Sums are those of float32, or float64, whatever the module's dtype; the output is rounded to it once.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from flexswitch.merging.switching.row_plan import RowPlan

_COMPILED = (torch.float32, torch.bfloat16, torch.float16)


def add_products(
    plan: RowPlan, weight: str | None, bias: str | None, inputs: Tensor, out: Tensor, each: int
) -> None:
    """Adds Σ_k w_k (τ_k·x + τ_k') to a linear layer's output in place; weight, bias: its units, where it has
    them.

    inputs: (…, in), out: (token, out) and contiguous, `each` tokens a row.
    """
    with _summed(out) as total:
        for task in plan.tasks:
            matrix, vector = (task.units.get(unit or "") for unit in (weight, bias))
            if matrix is None and vector is None:
                continue
            shift = torch.zeros(out.shape[1]) if vector is None else vector.dense().view(-1)
            places, factors = task.tokens(each)
            if matrix is not None and _is_compiled(out):
                matrix.add_product(plan.inputs(inputs), places, factors, shift.numpy(), total.numpy())
                continue
            where, shares = (torch.from_numpy(part).to(out.device) for part in (places, factors))
            added = shift.to(total)
            if matrix is not None:
                delta = matrix.dense().to(out.device, inputs.dtype)
                product = torch.nn.functional.linear(inputs.reshape(-1, inputs.shape[-1])[where], delta)
                added = product.to(total.dtype) + added
            total.index_add_(0, where, added * shares[:, None])


def add_embeddings(plan: RowPlan, unit: str, ids: Tensor, out: Tensor, each: int) -> None:
    """Adds Σ_k w_k τ_k[id] to a table's output in place; ids: (token,), out: (token, width), contiguous."""
    with _summed(out) as total:
        for task in plan.tasks:
            if unit not in task.units:
                continue
            places, factors = task.tokens(each)
            if _is_compiled(out):
                task.units[unit].add_rows(ids.numpy(), places, factors, total.numpy())
            else:
                where, weights = (torch.from_numpy(part).to(out.device) for part in (places, factors))
                delta = task.units[unit].dense().to(out.device, total.dtype)
                total.index_add_(0, where, delta[ids[where]] * weights[:, None])


def _is_compiled(out: Tensor) -> bool:
    return out.device.type == "cpu" and out.dtype in _COMPILED


@contextmanager
def _summed(out: Tensor) -> Iterator[Tensor]:
    """Gives a tensor to add to in float32 or float64, and writes it back where it is not `out` itself."""
    total = out if out.dtype in (torch.float32, torch.float64) else out.to(torch.float32)
    yield total
    if total is not out:
        out.copy_(total)
