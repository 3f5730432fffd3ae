"""Merges along great circles: slerp of two models, its forms with weights and for many, and the Karcher mean.

Source: Shoemake 1985, "Animating rotation with quaternion curves"; docs/methods.md §6.20.
"""

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from flexswitch.codecs.errors import UsageError
from flexswitch.merging.static.gram import (
    Matrix,
    Rows,
    Vector,
    combined_deltas,
    combined_models,
    combined_rows,
    delta_products,
    model_products,
    row_products,
)
from flexswitch.merging.static.task_deltas import Combination, TensorDeltas

Of = Annotated[
    Literal["deltas", "models"],
    Field(description="What is on the sphere: deltas, or models."),
]

_PARALLEL = 0.9995  # slerp takes the chord where the cosine is beyond it
_COLLINEAR = 1e-12  # sin² of the angle between opposite vectors that are rounded to float32 is below it
_LEAST_NORM = 1e-8
_CANCELLED = 1e-7  # a length found from inner products is exact to about 1e-8


def slerp(
    deltas: TensorDeltas,
    *,
    t: Annotated[float, Field(ge=0, le=1, description="Share of the second model.")] = 0.5,
) -> Combination:
    """Returns the weights at the share t of the arc from the first model to the second, tensor by tensor.

    Models whose cosine exceeds 0.9995 in magnitude are interpolated along the chord.
    """
    products = model_products(deltas)
    norms = np.sqrt(np.diag(products))
    norms = np.where(norms > _LEAST_NORM, norms, 1.0)
    cosine = float(np.clip(products[0, 1] / (norms[0] * norms[1]), -1, 1))
    if abs(cosine) > _PARALLEL:
        return combined_models([1 - t, t])
    return combined_models(_on_arc(t, cosine))


def nuslerp(
    deltas: TensorDeltas,
    *,
    of: Of = "deltas",
    flatten: Annotated[
        bool, Field(description="One angle for the whole tensor, or one for each row (the last dimension).")
    ] = True,
    columns: Annotated[
        bool,
        Field(description="With flatten=false, one angle for each column (the first dimension) instead."),
    ] = False,
) -> Combination:
    """Returns the slerp of two tasks at the second one's share of their weights."""
    first, second = deltas.weights
    share = 0.5 if abs(first + second) < 1e-6 else second / (first + second)
    if flatten:
        products = delta_products(deltas) if of == "deltas" else model_products(deltas)
        combined = combined_deltas if of == "deltas" else combined_models
        return combined(_on_arcs(share, products[None])[0])
    rows = Rows.of(deltas.shape, columns)
    return combined_rows(_on_arcs(share, row_products(deltas, rows, of)), rows, of)


def _on_arcs(share: float, products: Matrix) -> Matrix:
    """Returns the coefficients of two vectors at a share of their arc, (vector, 2); products: of each pair.

    Parallel and opposite vectors are interpolated along the chord.
    """
    norms = np.maximum(np.sqrt(products.diagonal(axis1=1, axis2=2)), 1e-7)
    cosines = np.clip(products[:, 0, 1] / (norms[:, 0] * norms[:, 1]), -1, 1).tolist()
    chord = [1 - share, share]
    return np.array([chord if 1 - cosine**2 <= _COLLINEAR else _on_arc(share, cosine) for cosine in cosines])


def multislerp(
    deltas: TensorDeltas,
    *,
    of: Of = "deltas",
    normalize: Annotated[bool, Field(description="Divide the weights by their sum.")] = True,
) -> Combination:
    """Returns the weighted mean on the sphere, in the tangent space at the weighted mean of the directions.

    It is scaled to the weighted mean of the norms. Where the directions cancel each other, it is the weighted
    sum. Raises: UsageError where the weights sum to zero.
    """
    weights = np.array(deltas.weights)
    if normalize and abs(weights.sum()) < _LEAST_NORM:
        raise UsageError(f"the weights of tensor '{deltas.name}' sum to 0, expected another sum")
    weights = weights / weights.sum() if normalize else weights
    combined = combined_deltas if of == "deltas" else combined_models
    if len(weights) == 1:
        return combined([1.0])
    products = delta_products(deltas) if of == "deltas" else model_products(deltas)
    norms = np.sqrt(np.diag(products))
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    units = products * np.outer(inverse, inverse)
    length = _length(weights, units)
    if length < _CANCELLED:
        return combined(weights)
    mean = weights / length  # all directions are coefficients of the unit vectors
    tangent = weights - (weights @ (units @ mean)) * mean
    angle = _length(tangent, units)
    direction = mean * math.cos(angle) + tangent * float(np.sinc(angle / math.pi))
    return combined(direction * (norms @ weights) * inverse)


def karcher(
    deltas: TensorDeltas,
    *,
    max_iter: Annotated[int, Field(ge=0, description="Steps at most.")] = 10,
    tol: Annotated[float, Field(gt=0, description="Angle at which the steps end.")] = 1e-5,
) -> Combination:
    """Returns the weighted Karcher mean of the models' directions, times the weighted mean of their norms.

    It is the point of the sphere of least sum of squared angles, found by steps in its tangent space; models
    whose norm is at most `tol` count for the norm alone. Source: Karcher 1977, "Riemannian center of mass".
    Raises: UsageError where the weights sum to zero.
    """
    weights = np.array(deltas.weights)
    if abs(weights.sum()) < _LEAST_NORM:
        raise UsageError(f"the weights of tensor '{deltas.name}' sum to 0, expected another sum")
    weights = weights / weights.sum()
    products = model_products(deltas)
    norms = np.sqrt(np.diag(products))
    if len(weights) == 1:
        return combined_models([1.0])
    valid = np.flatnonzero(norms > tol)
    if not len(valid):
        return combined_models(np.zeros(len(weights)))
    found = np.zeros(len(weights))
    units = products[np.ix_(valid, valid)] / np.outer(norms[valid], norms[valid])
    mean = _karcher_mean(weights[valid] / weights[valid].sum(), units, max_iter, tol)
    found[valid] = mean * (weights @ norms) / norms[valid]
    return combined_models(found)


def _karcher_mean(weights: Vector, units: Matrix, max_iter: int, tol: float) -> Vector:
    """Returns the mean as coefficients of the unit vectors; units: their inner products."""
    length = _length(weights, units)
    mean = weights / length if length >= tol else np.eye(len(weights))[0]
    for _ in range(max_iter):
        tangent = np.zeros(len(weights))
        for place, weight in enumerate(weights):
            cosine = float(np.clip(units[place] @ mean, -1, 1))
            angle = math.acos(cosine)
            if tol <= angle < math.pi:
                tangent += weight * angle / math.sin(angle) * (np.eye(len(weights))[place] - cosine * mean)
        step = _length(tangent, units)
        if step < tol:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        mean = mean / _length(mean, units)
    return mean


def _length(coefficients: Vector, units: Matrix) -> float:
    """Returns the norm of a combination of unit vectors."""
    return math.sqrt(max(0.0, float(coefficients @ units @ coefficients)))


def _on_arc(share: float, cosine: float) -> list[float]:
    """Returns the coefficients of two vectors at a share of the arc between their directions."""
    angle = math.acos(cosine)
    return [math.sin((1 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle)]
