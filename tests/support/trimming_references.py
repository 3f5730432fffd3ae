"""Sums and merges of trimmed deltas in plain numpy and float64: task arithmetic, TIES, breadcrumbs, DARE, DELLA.

Each function is called as its method, with `_` for `-`, and returns the merged weights by name.
"""

import hashlib
from collections.abc import Callable
from decimal import Decimal

import numpy as np
from support.merge_case import Case, Floats, Weights, floor_of


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


def sorted_at(rows: Floats, low: int, high: int) -> tuple[Floats, Floats]:
    """Returns the values at two places of each sorted row, as columns."""
    ordered = np.sort(rows, axis=1)
    return ordered[:, [max(0, low)]], ordered[:, [max(0, low, high)]]


def between(rows: Floats, least: Floats, most: Floats) -> Floats:
    return (np.clip(rows, least, most) - least) / np.where(most > least, most - least, 1)


def pcb(case: Case) -> Weights:
    names, count = list(case.base), sum(each.size for each in case.base.values())
    flat = np.array([np.concatenate([delta[name].reshape(-1) for name in names]) for delta in case.deltas])
    clip, density = Decimal(str(case.get("clip", 0.01))), Decimal(str(case.get("density", 0.05)))
    bounds = sorted_at(np.abs(flat), int(count * clip), int(count * (1 - clip) - 1))
    sizes = between(np.abs(flat), *bounds)
    signed = np.sign(flat) * sizes
    agreement = {
        "pairs": np.tanh(signed[:, None] * signed[None]).sum(axis=1),
        "directions": np.tanh(flat * signed.sum(axis=0)),
        "sum": np.tanh(flat * flat.sum(axis=0)),
    }[case.get("form", "pairs")]
    scores = np.exp(len(flat) * sizes**2) * agreement
    if len(flat) < 80:  # float32 holds them: equal scores stay equal, as in the released code
        scores = scores.astype(np.float32).astype(np.float64)
    least, most = sorted_at(scores, min(count - 1, int(count * (1 - density))), count - 1)
    kept = between(scores, least, most)
    kept[(least == most) & (most > 0) & (scores >= most)] = 1.0
    clipped = np.sign(flat) * np.clip(np.abs(flat), *bounds)
    merged = (np.array(case.weights)[:, None] * kept * clipped).sum(axis=0)
    merged = case.get("lambda", 1.2) * merged / np.maximum(kept.sum(axis=0), 1e-12)
    ends = np.cumsum([case.base[name].size for name in names])[:-1]
    parts = dict(zip(names, np.split(merged, ends), strict=True))
    return {name: weights + parts[name].reshape(weights.shape) for name, weights in case.base.items()}
