"""Directions that separate the tasks: linear discriminants of a shrunk scatter, then principal components.

Source: Fisher 1936; Friedman 1989 for the shrinkage, which is towards a multiple of the identity.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flexswitch.merging.routing.grid import on_grid

_FLATTEST, _SHORTEST, _NOTHING = 1e-9, 1e-6, 1e-30
_BITS = 20
_FILL = 0.4  # a principal component's weight relative to a discriminant, as it says less about tasks
_SPREAD = 20 / 3  # mean squared distance to the centre, which suits the votes exp(-d²) of NCA


@dataclass(frozen=True, eq=False)
class Scatter:
    """Exemplars in the space that they span, and the eigenvectors of the scatter within tasks.

    span: (width, dimension), orthonormal columns; points: (exemplar, dimension), centred; means: (task,
    dimension); shares: (task,), of the exemplars; variances: (dimension,), along the columns of vectors
    (dimension, dimension). All float64.
    """

    span: Tensor
    points: Tensor
    means: Tensor
    shares: Tensor
    variances: Tensor
    vectors: Tensor


def scatter_of(features: Tensor, task_ids: Tensor) -> Scatter:
    """Returns the scatter of features (exemplar, width) float64; task_ids: (exemplar,) int64."""
    centred = features - features.mean(0)
    span = _span(centred)
    points = centred @ span
    _, numbers, counts = torch.unique(task_ids, return_inverse=True, return_counts=True)
    sums = points.new_zeros(len(counts), points.shape[1]).index_add_(0, numbers, points)
    means = sums / counts.unsqueeze(1)
    within = points - means[numbers]
    variances, vectors = torch.linalg.eigh(within.T @ within / len(points))
    return Scatter(span, points, means, counts.to(points) / len(points), variances.clamp(min=0), vectors)


def lda(scatter: Scatter, rank: int, shrinkage: float, fill: bool = True) -> Tensor:
    """Returns up to `rank` directions, (rank, width) float64, by which features are multiplied.

    The linear discriminants come first, at most one fewer than there are tasks. With `fill`, the principal
    components of the rest follow with a smaller weight. shrinkage: 0 uses the scatter within tasks unchanged,
    1 replaces it by the same variance in all directions. Directions are rounded to a grid, and those that
    consist of rounding errors are left out, so that NCA starts alike everywhere.
    """
    shrunk = (1 - shrinkage) * scatter.variances + shrinkage * scatter.variances.mean()
    floor = _FLATTEST * scatter.points.square().mean() + _NOTHING  # where nothing varies within tasks
    whiten = scatter.vectors / shrunk.maximum(floor).sqrt()  # (dimension, dimension)
    between = scatter.shares.sqrt().unsqueeze(1) * (scatter.means @ whiten)
    rank = min(rank, len(whiten))
    found = _discriminants(between)[:rank]
    if fill and len(found) < rank:
        whitened = scatter.points @ whiten
        rest = whitened - whitened @ found.T @ found
        components = _components(rest, _FLATTEST * whitened.square().sum())
        found = torch.cat([found, _FILL * components[: rank - len(found)]])
    matrix = found @ whiten.T  # (rank, dimension)
    spread = (scatter.points @ matrix.T).square().sum(1).mean()
    scaled = matrix * torch.sqrt(_SPREAD / (spread + _NOTHING)) @ scatter.span.T
    largest = scaled.gather(1, scaled.abs().argmax(1, keepdim=True))
    return on_grid(scaled * largest.sign(), _BITS)  # the sign of a direction is arbitrary


def _discriminants(between: Tensor) -> Tensor:
    """Returns the directions in which the tasks' means differ, (direction, dimension), at least one."""
    _, lengths, directions = torch.linalg.svd(between, full_matrices=False)
    differing = int((lengths[:-1] > _SHORTEST * lengths[0]).sum())  # the means' weighted sum is zero
    found: Tensor = directions[: max(1, differing)]
    return found


def _components(rest: Tensor, floor: Tensor) -> Tensor:
    """Returns the principal components of a sum of squares above `floor`, the largest first.

    Those below are directions of rounding errors.
    """
    squares, vectors = torch.linalg.eigh(rest.T @ rest)
    found: Tensor = vectors.T[squares > floor].flip(0)
    return found


def _span(centred: Tensor) -> Tensor:
    """Returns an orthonormal basis of the rows' span, or of the whole space if rows outnumber columns."""
    if len(centred) > centred.shape[1]:
        return torch.eye(centred.shape[1], dtype=centred.dtype)
    rows: Tensor = torch.linalg.svd(centred, full_matrices=False).Vh
    return rows.T
