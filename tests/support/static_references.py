"""Every static merge written anew in plain numpy and float64, on whole models, for the tests that compare.

Each function is called as its method, with `_` for `-`, and returns the merged weights by name.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Weights = dict[str, Floats]


@dataclass
class Case:
    """A base, the deltas of the tasks, their weights and the method's settings, which need not be given."""

    base: Weights
    deltas: list[Weights]
    weights: list[float]
    settings: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any) -> Any:
        return self.settings.get(name, default)

    def stacked(self, name: str) -> Floats:
        """Returns a tensor's deltas, (task, ...)."""
        return np.array([delta[name] for delta in self.deltas])

    def weighted(self, name: str) -> Floats:
        """Returns a tensor's deltas times the tasks' weights, (task, ...)."""
        stacked = self.stacked(name)
        return stacked * np.reshape(self.weights, (-1, *[1] * (stacked.ndim - 1)))


def average(case: Case) -> Weights:
    return linear(case)


def linear(case: Case) -> Weights:
    models = [{name: case.base[name] + delta[name] for name in case.base} for delta in case.deltas]
    total = sum(case.weights) if case.get("normalize", True) else 1.0
    return {
        name: sum(weight * model[name] for weight, model in zip(case.weights, models, strict=True)) / total
        for name in case.base
    }


def task_arithmetic(case: Case) -> Weights:
    scale = case.get("lambda", 0.3)
    return {name: weights + scale * case.weighted(name).sum(axis=0) for name, weights in case.base.items()}


def elected(weighted: Floats, weights: list[float], election: str, merge: str, tie: float) -> Floats:
    """Returns the merge of the weighted deltas, (task, ...), that agree with the elected sign."""
    votes = weighted if election == "mass" else np.sign(weighted)
    signs = np.sign(votes.sum(axis=0))
    signs = np.where(signs == 0, tie, signs)
    agrees = (np.sign(weighted) == signs) & (weighted != 0)
    kept = np.where(agrees, weighted, 0)
    if merge == "sum":
        return kept.sum(axis=0)
    if merge == "max":
        return signs * np.abs(kept).max(axis=0)
    shares = (agrees * np.reshape(weights, (-1, *[1] * (weighted.ndim - 1)))).sum(axis=0)
    return kept.sum(axis=0) / np.where(shares == 0, 1, shares)


def by_rank(delta: Floats, first: int, last: int) -> Floats:
    """Returns a delta with only the ranks first < rank ≤ last by magnitude; of equal entries the first lead."""
    flat = delta.reshape(-1)
    order = sorted(range(flat.size), key=lambda place: (-abs(flat[place]), place))
    found = np.zeros(flat.size)
    found[order[first:last]] = flat[order[first:last]]
    return found.reshape(delta.shape)


def floor_of(share: float, count: int) -> int:
    return int(Decimal(str(share)) * count)


def with_election(
    case: Case, trimmed: list[Weights], merge: str, tie: float = 1.0, scale: float = 1.0
) -> Weights:
    """Returns the base plus the elected merge of deltas that have been trimmed."""
    new = Case(case.base, trimmed, case.weights)
    merge, election = case.get("merge", merge), case.get("election", "mass")
    return {
        name: weights
        + case.get("lambda", scale) * elected(new.weighted(name), case.weights, election, merge, tie)
        for name, weights in case.base.items()
    }


def with_sum(case: Case, trimmed: list[Weights]) -> Weights:
    """Returns the base plus λ times the weighted sum, or mean, of deltas that have been trimmed."""
    new = Case(case.base, trimmed, case.weights)
    total = sum(case.weights) if case.get("normalize", False) else 1.0
    scale = case.get("lambda", 0.3) / total
    return {name: weights + scale * new.weighted(name).sum(axis=0) for name, weights in case.base.items()}


def ties(case: Case) -> Weights:
    density = case.get("density", 0.2)
    densities = density if isinstance(density, list) else [density] * len(case.deltas)
    if case.get("scope", "model") == "tensor":
        trimmed = [
            {name: by_rank(each, 0, max(1, floor_of(share, each.size))) for name, each in delta.items()}
            for share, delta in zip(densities, case.deltas, strict=True)
        ]
        return with_election(case, trimmed, "mean")
    trimmed = []
    for share, delta in zip(densities, case.deltas, strict=True):
        flat = np.sort(np.abs(np.concatenate([each.reshape(-1) for each in delta.values()])))[::-1]
        rank = floor_of(share, flat.size) + 1
        least = flat[rank - 1] if rank <= flat.size else 0
        trimmed.append({name: np.where(np.abs(each) >= least, each, 0) for name, each in delta.items()})
    new, count = Case(case.base, trimmed, case.weights), case.get("election", "mass") == "count"
    signs = [np.sign((np.sign(new.weighted(n)) if count else new.weighted(n)).sum(axis=0)) for n in case.base]
    tie = 1.0 if sum(each.sum() for each in signs) > 0 else -1.0
    return with_election(case, trimmed, "mean", tie)


def crumbs(case: Case) -> list[Weights]:
    density, gamma = case.get("density", 0.1), case.get("gamma", 0.01)
    trimmed = []
    for delta in case.deltas:
        found = {}
        for name, each in delta.items():
            kept = floor_of(density, each.size)
            top = min(floor_of(gamma, each.size), each.size - kept)
            found[name] = by_rank(each, top, top + kept)
        trimmed.append(found)
    return trimmed


def breadcrumbs(case: Case) -> Weights:
    return with_sum(case, crumbs(case))


def breadcrumbs_ties(case: Case) -> Weights:
    return with_election(case, crumbs(case), "mean")


def draws(case: Case, task: int, name: str, count: int) -> list[int]:
    """Returns the numbers of 64 bits that decide about a tensor's entries."""
    key = hashlib.sha256(f"{case.get('seed', 0)}\0{'abcdefgh'[task]}\0{name}".encode()).digest()
    generator = np.random.PCG64(int.from_bytes(key, "little"))
    return [int(generator.random_raw()) for _ in range(count)]


def rescaled(case: Case, delta: Floats, kept: Floats, chances: Floats) -> Floats:
    """Returns the kept entries, scaled as the settings say."""
    way = case.get("rescale", "probability")
    if way == "probability":
        return kept / np.where(chances > 0, chances, 1)
    before, after = np.abs(delta).sum(), np.abs(kept).sum()
    return kept * (before / after if way == "l1" and min(before, after) >= 1e-7 else 1)


def dropped(case: Case, chances_of: Callable[[Floats], Floats]) -> list[Weights]:
    trimmed = []
    for task, delta in enumerate(case.deltas):
        found = {}
        for name, each in delta.items():
            chances = chances_of(each)
            numbers = np.array(draws(case, task, name, each.size), object).reshape(each.shape)
            kept = np.where((numbers < chances * 2.0**64).astype(bool), each, 0)
            found[name] = rescaled(case, each, kept, chances)
        trimmed.append(found)
    return trimmed


def dare_chances(case: Case) -> Callable[[Floats], Floats]:
    return lambda delta: np.full(delta.shape, case.get("density", 0.5))


def dare_linear(case: Case) -> Weights:
    return with_sum(case, dropped(case, dare_chances(case)))


def dare_ties(case: Case) -> Weights:
    return with_election(case, dropped(case, dare_chances(case)), "mean")


def della_chances(case: Case) -> Callable[[Floats], Floats]:
    density, epsilon = case.get("density", 0.7), case.get("epsilon", 0.07)

    def chances(delta: Floats) -> Floats:
        rows = delta.reshape(delta.shape[0] if delta.ndim > 1 else 1, -1)
        found = np.full(rows.shape, density)
        for row, values in enumerate(rows):
            order = sorted(range(len(values)), key=lambda place: (abs(values[place]), place))
            for rank, place in enumerate(order if len(values) > 1 else []):
                found[row, place] = density - epsilon + 2 * epsilon * rank / (len(values) - 1)
        return np.ones(delta.shape) if density == 1 else found.reshape(delta.shape)

    return chances


def della(case: Case) -> Weights:
    return with_election(case, dropped(case, della_chances(case)), "mean")


def della_linear(case: Case) -> Weights:
    return with_sum(case, dropped(case, della_chances(case)))


def models_of(case: Case, name: str, of: str = "models") -> Floats:
    """Returns a tensor's models or deltas as vectors, (task, entry)."""
    stacked = case.stacked(name).reshape(len(case.deltas), -1)
    return stacked + case.base[name].reshape(-1) if of == "models" else stacked


def from_vectors(case: Case, of: str, merge: Callable[[Floats], Floats]) -> Weights:
    """Returns the merge of each tensor's models, or the base plus that of its deltas."""
    return {
        name: merge(models_of(case, name, of)).reshape(weights.shape) + (0 if of == "models" else weights)
        for name, weights in case.base.items()
    }


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
        return (1 - t) * vectors[0] + t * vectors[1] if 1 - cosine**2 <= 1e-16 else arc(*vectors, t, cosine)

    return from_vectors(case, case.get("of", "deltas"), merge)


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

    return from_vectors(case, "deltas", merge)


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


def consensus(case: Case, merged: Weights) -> Weights:
    """Returns the base plus the merged deltas where they matter to k tasks."""
    found = {}
    for name, weights in case.base.items():
        own, others = case.weighted(name), merged[name] - case.weighted(name)
        count = (np.abs(own) > case.get("mask_lambda", 0.4) * np.abs(others)).sum(axis=0)
        found[name] = weights + np.where(count >= case.get("k", 2), case.get("lambda", 0.3) * merged[name], 0)
    return found


def consensus_ta(case: Case) -> Weights:
    return consensus(case, {name: case.weighted(name).sum(axis=0) for name in case.base})


def consensus_ties(case: Case) -> Weights:
    settings = {"density": case.get("density", 0.2), "merge": "sum"}
    summed = ties(Case(case.base, case.deltas, case.weights, settings))
    return consensus(case, {name: summed[name] - weights for name, weights in case.base.items()})


def by_matrix(case: Case, merge: Callable[[Floats], Floats | None]) -> Weights:
    """Returns the base plus λ times the merge of matrices; other tensors are averaged."""
    found = {}
    for name, weights in case.base.items():
        merged = merge(case.weighted(name)) if weights.ndim == 2 else None
        if merged is None:
            merged = case.weighted(name).sum(axis=0) / sum(case.weights)
        found[name] = weights + case.get("lambda", 1.0) * merged
    return found


def polar(matrix: Floats) -> Floats:
    """Returns U Vᵀ of a matrix U Σ Vᵀ, without the singular values 0."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    rank = int((values > 1e-12).sum())
    return left[:, :rank] @ right[:rank]


def iso_c(case: Case) -> Weights:
    def merge(deltas: Floats) -> Floats:
        total = deltas.sum(axis=0)
        return np.linalg.svd(total, compute_uv=False).mean() * polar(total)

    return by_matrix(case, merge)


def tsv_m(case: Case) -> Weights:
    def merge(deltas: Floats) -> Floats | None:
        kept = min(deltas.shape[1:]) // len(deltas)
        if not kept:
            return None
        parts = [np.linalg.svd(delta, full_matrices=False) for delta in deltas if delta.any()]
        if not parts:
            return np.zeros(deltas.shape[1:])
        left = polar(np.concatenate([part[0][:, :kept] for part in parts], axis=1))
        right = polar(np.concatenate([part[2][:kept] for part in parts]))
        return left @ np.diag(np.concatenate([part[1][:kept] for part in parts])) @ right

    return by_matrix(case, merge)


def arcee_fusion(case: Case) -> Weights:
    found = {}
    for name, weights in case.base.items():
        delta = case.deltas[0][name]
        rows, changed = (
            weights.reshape(-1, weights.shape[-1]),
            (weights + delta).reshape(-1, weights.shape[-1]),
        )
        importance = []
        for old, new in zip(rows, changed, strict=True):
            q = np.exp(old - old.max()) / np.exp(old - old.max()).sum() + 1e-8
            p = np.exp(new - new.max()) / np.exp(new - new.max()).sum() + 1e-8
            importance.append(np.abs(new - old) * float((p * np.log(p / q)).sum()))
        flat = np.array(importance).reshape(-1)
        ordered = np.sort(flat)
        first, median, third = (ordered[int(share * (flat.size - 1))] for share in (0.25, 0.5, 0.75))
        marks = (flat >= (median + 1.5 * (third - first)) * (1 - 1e-6)).reshape(weights.shape)
        found[name] = weights + marks * delta
    return found
