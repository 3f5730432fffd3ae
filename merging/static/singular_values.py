"""Merges of matrices by their singular values, in float64 on whole tensors; other tensors are averaged.

A matrix is a tensor of two dimensions, but for CLIP's text projections, as in the published code of both.
Directions that may come from the rounding of float32 weights alone are left out, because both methods would
give them the size of others.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from flexswitch.merging.static.task_deltas import Combination, TensorDeltas
from flexswitch.merging.static.weighted import merge_weighted

Lambda = Annotated[float, Field(description="Scale of the merged delta.")]

_AVERAGED = "text_projection"
_EPSILON = torch.finfo(torch.float32).eps


def iso_c(deltas: TensorDeltas, *, lambda_: Lambda = 1.0) -> Combination:
    """Returns λ U Vᵀ times the mean singular value, where U Σ Vᵀ is the weighted sum of the tasks' matrices.

    Singular vectors of values within the rounding of float32 weights are arbitrary and are left out.
    Source: Marczak et al. 2025, "No Task Left Behind" (arXiv 2502.04959), section 4.
    """
    if not _is_matrix(deltas):
        return _averaged(deltas, lambda_)
    total, least, base = torch.zeros(deltas.shape, dtype=torch.float64), 0.0, _base_norm(deltas)
    for task in deltas.tasks:
        matrix = deltas.weights[task] * deltas.whole(task).to(torch.float64)
        total += matrix
        least += _rounding(matrix, abs(deltas.weights[task]) * base)
    left, values, right = torch.linalg.svd(total, full_matrices=False)
    rank = int((values > least).sum())
    return _stored(lambda_ * values.mean() * (left[:, :rank] @ right[:rank]))


def tsv_m(deltas: TensorDeltas, *, lambda_: Lambda = 1.0) -> Combination:
    """Returns λ U⊥ Σ V⊥ᵀ of the tasks' largest singular vectors, made orthogonal to those of other tasks.

    Of a matrix with r singular values each of K tasks keeps the ⌊r/K⌋ largest; U⊥ and V⊥ are the orthogonal
    matrices nearest to the tasks' vectors side by side. Vectors of values within the rounding of float32
    weights are left out. Where ⌊r/K⌋ is 0, the deltas are averaged.
    Source: Gargiulo et al. 2025, "Task Singular Vectors" (arXiv 2412.00081), section 4.2.
    """
    kept = min(deltas.shape) // len(deltas.weights) if _is_matrix(deltas) else 0
    if not kept:
        return _averaged(deltas, lambda_)
    base = _base_norm(deltas)

    def largest(task: int) -> tuple[Tensor, Tensor, Tensor]:
        matrix = deltas.weights[task] * deltas.whole(task).to(torch.float64)
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        least = _rounding(matrix, abs(deltas.weights[task]) * base)
        rank = min(kept, int((values > least).sum()))
        return left[:, :rank].clone(), values[:rank].clone(), right[:rank].clone()

    parts = deltas.each_task(largest, copies=8)
    left = _orthogonal(torch.cat([part[0] for part in parts], dim=1))
    values = torch.cat([part[1] for part in parts])
    right = _orthogonal(torch.cat([part[2] for part in parts]))
    return _stored(lambda_ * (left * values) @ right)


def _is_matrix(deltas: TensorDeltas) -> bool:
    return len(deltas.shape) == 2 and _AVERAGED not in deltas.name


def _averaged(deltas: TensorDeltas, lambda_: float) -> Combination:
    return Combination(lambda block: lambda_ * merge_weighted(block.deltas, deltas.weights, normalize=True))


def _stored(merged: Tensor) -> Combination:
    """Returns the combination whose blocks are parts of a matrix."""
    flat = merged.to(torch.float32).reshape(-1)
    return Combination(lambda block: flat[block.start : block.start + len(block.base)])


def _orthogonal(matrix: Tensor) -> Tensor:
    """Returns the matrix with orthonormal rows or columns that is nearest, as far as its rank goes."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((values > _rounding(matrix)).sum())
    nearest: Tensor = left[:, :rank] @ right[:rank]
    return nearest


def _base_norm(deltas: TensorDeltas) -> float:
    base = deltas.model.base.read(deltas.name, 0, deltas.entries)
    return float(torch.linalg.vector_norm(base.to(torch.float64)))


def _rounding(matrix: Tensor, base: float = 0.0) -> float:
    """Returns what no singular value exceeds that comes from rounding in float32.

    matrix: a change, whose norm and that of the weights it changes bound the errors of its entries.
    """
    return _EPSILON * (float(torch.linalg.vector_norm(matrix)) + base)
