"""Merges of matrices in plain numpy and float64: Iso-C, TSV-M, Arcee Fusion.

Each function is called as its method, with `_` for `-`, and returns the merged weights by name.
"""

from collections.abc import Callable

import numpy as np
from support.merge_case import Case, Floats, Weights


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
        ranks = [min(kept, int((values > 1e-9).sum())) for _, values, _ in parts]
        sized = list(zip(parts, ranks, strict=True))
        left = polar(np.concatenate([part[0][:, :rank] for part, rank in sized], axis=1))
        right = polar(np.concatenate([part[2][:rank] for part, rank in sized]))
        return left @ np.diag(np.concatenate([part[1][:rank] for part, rank in sized])) @ right

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
