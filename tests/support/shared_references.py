"""The shared forms by docs/methods.md §6.30, in float64 on whole models: the deltas that each task is restored to."""

import numpy as np
from support.merge_case import Case, Floats, Weights, floor_of


def emr(case: Case) -> list[Weights]:
    total = {name: case.stacked(name).sum(0) for name in case.base}
    signs = {name: np.where(values > 0, 1.0, -1.0) for name, values in total.items()}
    shared = {
        name: signs[name] * np.maximum(case.stacked(name) * signs[name], 0).max(0) for name in case.base
    }
    shared = {name: narrowed(values, case.get("shared_bits", 32)) for name, values in shared.items()}
    found = []
    for delta in case.deltas:
        masked = {name: np.where(delta[name] * shared[name] > 0, shared[name], 0) for name in case.base}
        take = np.mean if case.get("rescale", "tensors") == "tensors" else np.sum
        kept = sum(take(np.abs(values)) for values in masked.values())
        scale = sum(take(np.abs(values)) for values in delta.values()) / kept if kept else 0.0
        found.append({name: scale * values for name, values in masked.items()})
    return found


def tall(case: Case) -> list[Weights]:
    names, share = list(case.base), case.get("density", 0.2)
    shared = {name: case.stacked(name).sum(0) for name in names}
    if case.get("merge", "sum") == "ties":
        trimmed = [trim(delta, share) for delta in case.deltas]
        total = {name: sum(delta[name] for delta in trimmed) for name in names}
        overall = np.sign(sum(np.sign(values).sum() for values in total.values())) or -1.0
        signs = {name: np.where(values == 0, overall, np.sign(values)) for name, values in total.items()}
        shared = {
            name: sum(np.where(delta[name] * signs[name] > 0, delta[name], 0) for delta in trimmed)
            for name in names
        }
    shared = {name: narrowed(values, case.get("shared_bits", 32)) for name, values in shared.items()}
    factor = case.get("mask_lambda", 0.4)
    return [
        {
            name: np.where(np.abs(delta[name]) > factor * np.abs(shared[name] - delta[name]), shared[name], 0)
            for name in names
        }
        for delta in case.deltas
    ]


def rtvq(case: Case) -> list[Weights]:
    mean = {name: case.stacked(name).mean(0).astype(np.float32).astype(np.float64) for name in case.base}
    stored = {name: quantised(values, case.get("shared_bits", 3)) for name, values in mean.items()}
    reference = stored if case.get("error_correction", True) else mean
    bits = case.get("bits", 2)
    return [
        {name: stored[name] + quantised(delta[name] - reference[name], bits) for name in case.base}
        for delta in case.deltas
    ]


def twin(case: Case) -> list[Weights]:
    factor = case.get("lambda", 0.29)
    shared = {name: factor * case.stacked(name).sum(0) for name in case.base}
    shared = {name: narrowed(values, case.get("shared_bits", 32)) for name, values in shared.items()}
    strategy, drop = case.get("strategy", "svd"), case.get("drop", 0.9)

    def own(rest: Floats) -> Floats:
        if rest.ndim != 2 or drop == 0:
            return narrowed(rest, case.get("bits", 32))
        if strategy == "magnitude":
            count = floor_of(1 - np.round(drop, 9), rest.size)
            least = np.sort(np.abs(rest), axis=None)[-count] if count else np.inf
            return np.where(np.abs(rest) >= least, rest, 0)
        left, values, right = np.linalg.svd(rest, full_matrices=False)
        rank = int(round((1 - drop) * 1000) * len(values) / 1000 + 1e-9)
        values[rank:] = 0
        return (left * values) @ right

    return [
        {name: shared[name] + own(delta[name] - shared[name]) for name in case.base} for delta in case.deltas
    ]


def narrowed(values: Floats, bits: int) -> Floats:
    """Returns values as they are stored in so many bits."""
    if bits <= 8:
        return quantised(values, bits)
    single = values.astype(np.float32)
    if bits == 16:
        words = single.view(np.uint32).astype(np.uint64)
        words = (words + 0x7FFF + (words >> 16 & 1)) >> 16 << 16
        single = words.astype(np.uint32).view(np.float32)
    return single.astype(np.float64)


def quantised(values: Floats, bits: int) -> Floats:
    """Returns the nearest of 2^bits levels from the least value to the largest, 0 among them."""
    values = values.astype(np.float32).astype(np.float64)
    low, high, top = values.min(), values.max(), 2**bits - 1
    if low == high:
        return values
    step = np.float32((high - low) / top)
    while float(step) < (high - low) / top:
        step = np.nextafter(step, np.float32(np.inf))
    step = float(step)
    zero = -np.rint(low / step)
    levels = np.clip(np.rint(values / step) + zero, 0, top)
    return (step * (levels - zero)).astype(np.float32).astype(np.float64)


def trim(delta: Weights, share: float) -> Weights:
    """Returns a task's largest entries, ⌊share · d⌋ + 1 of all d and those that equal the last."""
    flat = np.sort(np.abs(np.concatenate([values.reshape(-1) for values in delta.values()])))
    least = flat[max(0, len(flat) - floor_of(share, len(flat)) - 1)]
    return {name: np.where(np.abs(values) >= least, values, 0) for name, values in delta.items()}
