"""Merges of each tensor as a vector in plain numpy and float64: spheres, Model Stock, SCE, nearswap, RAM.

Each function is called as its method, with `_` for `-`, and returns the merged weights by name.
"""

from collections.abc import Callable

import numpy as np
from support.merge_case import Case, Floats, Weights, floor_of


def models_of(case: Case, name: str, of: str = "models") -> Floats:
    """Returns a tensor's models or deltas as vectors, (task, entry)."""
    stacked = case.stacked(name).reshape(len(case.deltas), -1)
    return stacked + case.base[name].reshape(-1) if of == "models" else stacked


def from_vectors(case: Case, of: str, merge: Callable[[Floats], Floats], axis: int | None = None) -> Weights:
    """Returns the merge of each tensor's models, or the base plus that of its deltas.

    axis: of the vectors that are merged by themselves, None for the whole tensor.
    """
    found = {}
    for name, weights in case.base.items():
        vectors = models_of(case, name, of)
        if axis is None:
            merged = merge(vectors).reshape(weights.shape)
        else:
            stacked = np.moveaxis(vectors.reshape(len(vectors), *weights.shape), 1 if axis == 0 else -1, -1)
            merged = np.zeros(stacked.shape[1:])
            for place in np.ndindex(merged.shape[:-1]):
                merged[place] = merge(stacked[(slice(None), *place)])
            merged = np.moveaxis(merged, -1, axis)
        found[name] = merged + (0 if of == "models" else weights)
    return found


def arc(one: Floats, other: Floats, t: float, cosine: float) -> Floats:
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * one + np.sin(t * angle) * other) / np.sin(angle)


def cosine_of(one: Floats, other: Floats, least: float) -> float:
    norms = [max(float(np.linalg.norm(each)), least) for each in (one, other)]
    return float(np.clip(one @ other / norms[0] / norms[1], -1, 1))


def slerp(case: Case) -> Weights:
    t = case.get("t", 0.5)

    def merge(models: Floats) -> Floats:
        cosine = cosine_of(models[0], models[1], 1e-8)
        return (1 - t) * models[0] + t * models[1] if abs(cosine) > 0.9995 else arc(*models, t, cosine)

    return from_vectors(case, "models", merge)


def nuslerp(case: Case) -> Weights:
    t = case.weights[1] / sum(case.weights)

    def merge(vectors: Floats) -> Floats:
        cosine = cosine_of(vectors[0], vectors[1], 1e-7)
        return (1 - t) * vectors[0] + t * vectors[1] if 1 - cosine**2 <= 1e-12 else arc(*vectors, t, cosine)

    axis = None if case.get("flatten", True) else (0 if case.get("columns", False) else -1)
    return from_vectors(case, case.get("of", "deltas"), merge, axis)


def multislerp(case: Case) -> Weights:
    weights = np.array(case.weights)
    weights = weights / weights.sum() if case.get("normalize", True) else weights

    def merge(vectors: Floats) -> Floats:
        norms = np.linalg.norm(vectors, axis=1)
        if len(vectors) == 1 or not norms.any():
            return vectors[0]
        units = vectors / np.where(norms > 0, norms, 1)[:, None]
        mean = weights @ units
        if np.linalg.norm(mean) < 1e-7:
            return weights @ vectors
        mean /= np.linalg.norm(mean)
        tangents = units - (units @ mean)[:, None] * mean
        tangent = weights @ tangents
        angle = max(float(np.linalg.norm(tangent)), 1e-300)
        return (weights @ norms) * (mean * np.cos(angle) + tangent * np.sin(angle) / angle)

    return from_vectors(case, case.get("of", "deltas"), merge)


def karcher(case: Case) -> Weights:
    weights = np.array(case.weights) / sum(case.weights)

    def merge(models: Floats) -> Floats:
        norms = np.linalg.norm(models, axis=1)
        units = models / norms[:, None]
        mean = weights @ units
        mean /= np.linalg.norm(mean)
        for _ in range(case.get("max_iter", 10) if len(models) > 1 else 0):
            tangent = np.zeros_like(mean)
            for weight, unit in zip(weights, units, strict=True):
                angle = np.arccos(np.clip(unit @ mean, -1, 1))
                if angle >= case.get("tol", 1e-5) and angle < np.pi:
                    tangent += weight * angle / np.sin(angle) * (unit - (unit @ mean) * mean)
            step = np.linalg.norm(tangent)
            if step < case.get("tol", 1e-5):
                break
            mean = np.cos(step) * mean + np.sin(step) * tangent / step
            mean /= np.linalg.norm(mean)
        return (weights @ norms) * mean

    return from_vectors(case, "models", merge)


def model_stock(case: Case) -> Weights:
    count = len(case.deltas)

    def merge(deltas: Floats) -> Floats:
        cosines = [
            one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-6)
            for place, one in enumerate(deltas)
            for other in deltas[place + 1 :]
        ]
        cosine = np.mean(cosines)
        divisor = 1 + (count - 1) * cosine
        return (0 if abs(divisor) < 1e-6 else count * cosine / divisor) * deltas.mean(axis=0)

    return from_vectors(case, "deltas", merge, None if case.get("flatten", True) else -1)


def sce(case: Case) -> Weights:
    def merge(deltas: Floats) -> Floats:
        variance = np.var(deltas, axis=0)
        if case.get("density", 1.0) < 1:
            count = floor_of(case.get("density", 1.0), int(np.count_nonzero(variance)))
            least = np.sort(variance)[::-1][count - 1] if count else np.inf
            deltas = np.where(variance >= least * (1 - 1e-6), deltas, 0)
        squares = (deltas**2).mean(axis=1)
        weights = list(squares / squares.sum()) if squares.any() else [1 / len(squares)] * len(squares)
        signs = np.where(deltas.sum(axis=0) >= 0, 1, -1)
        agrees = (np.sign(deltas) == signs) & (deltas != 0)
        shares = (agrees * np.array(weights)[:, None]).sum(axis=0)
        return (agrees * deltas * np.array(weights)[:, None]).sum(axis=0) / np.where(shares == 0, 1, shares)

    return from_vectors(case, "deltas", merge)


def nearswap(case: Case) -> Weights:
    def merge(deltas: Floats) -> Floats:
        return np.array([v * min(1.0, case.get("t", 0.0001) / max(abs(v), 1e-6)) for v in deltas[0]])

    return from_vectors(case, "deltas", merge)


def ram(case: Case) -> Weights:
    def merge(deltas: Floats) -> Floats:
        changed = np.abs(deltas) > case.get("epsilon", 1e-5)
        return (changed * deltas).sum(axis=0) / np.maximum(changed.sum(axis=0), 1)

    return from_vectors(case, "deltas", merge)


def ram_plus(case: Case) -> Weights:
    def merge(deltas: Floats) -> Floats:
        epsilon, found = case.get("epsilon", 1e-5), np.zeros(deltas.shape[1])
        changed = np.abs(deltas) > epsilon
        counts = changed.sum(axis=0)
        for delta, marks in zip(deltas, changed, strict=True):
            own, shared = (marks & (counts == 1)).sum(), (marks & (counts > 1)).sum()
            ratio = min(shared / max(own, epsilon), case.get("alpha", 0.2))
            factor = np.where(counts == 1, 1 + case.get("r", 0.1) * ratio, 1 / np.maximum(counts, 1))
            found += marks * delta * factor
        return found

    return from_vectors(case, "deltas", merge)
