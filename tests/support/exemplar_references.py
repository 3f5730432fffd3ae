"""Merges from examples in plain numpy and float64, of perceptrons; each is called as its method, with `_` for `-`."""

import hashlib
from typing import Any

import numpy as np
from support.perceptrons import SHAPES, Floats, Perceptrons, backward, doubles, forward

Weights = dict[str, Floats]


def information(weights: Weights, head: Floats, inputs: Floats, expectation: str = "exact") -> Weights:
    """Returns the diagonal of the Fisher information of a model."""
    total = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    if expectation == "batch-sum":
        for start in range(0, len(inputs), 32):
            x = inputs[start : start + 32]
            chances = forward(weights, head, x)[2]
            # ∂/∂z Σ_y √p_y log p_y with √p held fixed
            slopes = np.sqrt(chances) - np.sqrt(chances).sum(axis=1, keepdims=True) * chances
            for name, gradient in backward(weights, head, x, slopes).items():
                total[name] += gradient**2
    else:
        for example in inputs:
            chances = forward(weights, head, example[None])[2][0]
            for answer, chance in enumerate(chances):
                slopes = (np.arange(len(chances)) == answer) - chances
                for name, gradient in backward(weights, head, example[None], slopes[None]).items():
                    total[name] += chance * gradient**2
    return {name: each / len(inputs) for name, each in total.items()}


def fisher(case: Perceptrons, weights: list[float], settings: dict[str, Any]) -> Weights:
    above, below = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    for factor, state, inputs in zip(weights, case.states, case.inputs, strict=True):
        model = doubles(state)
        found = information(
            model, model["head.weight"], inputs.astype(float), settings.get("expectation", "exact")
        )
        if settings.get("normalize", False):
            factor /= np.sqrt(sum((each**2).sum() for each in found.values()))
        for name, each in found.items():
            above[name] += factor * (each + settings.get("floor", 1e-6)) * model[name]
            below[name] += factor * (each + settings.get("floor", 1e-6))
    return {name: above[name] / below[name] for name in SHAPES}


def regmean(case: Perceptrons, weights: list[float], settings: dict[str, Any]) -> Weights:
    shrinkage, ridge = settings.get("shrinkage", 0.9), settings.get("ridge", 1e-6)
    models = [doubles(state) for state in case.states]
    found = {
        name: sum(weight * model[name] for weight, model in zip(weights, models, strict=True)) / sum(weights)
        for name in SHAPES
    }
    for layer in ("first.weight", "second.weight"):
        left, right = 0.0, 0.0
        for weight, model, inputs in zip(weights, models, case.inputs, strict=True):
            x = inputs.astype(float)
            if layer == "second.weight":
                x = forward(model, model["head.weight"], x)[0]
            products = x.T @ x / len(x)
            size = np.diag(products).mean()
            products = np.where(np.eye(len(products)) == 1, products + ridge * size, shrinkage * products)
            left = left + weight * products
            right = right + weight * products @ model[layer].T
        found[layer] = np.linalg.solve(left, right).T
    return found


# --- AdaMerging -------------------------------------------------------------------------------------------


def entropy(weights: Weights, head: Floats, x: Floats) -> tuple[float, Weights]:
    """Returns the mean entropy of the answers, and its gradient."""
    chances = forward(weights, head, x)[2]
    each = -(chances * np.log(chances)).sum(axis=1, keepdims=True)
    slopes = -chances * (np.log(chances) + each) / len(x)
    return float(each.mean()), backward(weights, head, x, slopes)


class Adam:
    def __init__(self, rate: float) -> None:
        self.rate, self.count, self.mean, self.square = rate, 0, 0.0, 0.0

    def step(self, values: Floats, slopes: Floats) -> Floats:
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1 * slopes
        self.square = 0.999 * self.square + 0.001 * slopes**2
        mean, square = self.mean / (1 - 0.9**self.count), self.square / (1 - 0.999**self.count)
        return values - self.rate * mean / (np.sqrt(square) + 1e-8)


class Entropies:
    """The tasks' heads, and their examples without and with every fifth."""

    def __init__(self, case: Perceptrons) -> None:
        self.heads = [doubles(state)["head.weight"] for state in case.states]
        inputs = [each.astype(float) for each in case.inputs]
        self.learned = [np.delete(each, slice(4, None, 5), axis=0) for each in inputs]
        self.held_out = [each[4::5] for each in inputs]

    def mean(self, weights: Weights) -> float:
        return float(
            np.mean([entropy(weights, head, x)[0] for head, x in zip(self.heads, self.held_out, strict=True)])
        )

    def slopes(self, weights: Weights) -> Weights:
        found = [entropy(weights, head, x)[1] for head, x in zip(self.heads, self.learned, strict=True)]
        return {name: np.sum([each[name] for each in found], axis=0) for name in SHAPES}


def trained(
    case: Perceptrons, deltas: list[Weights], settings: dict[str, Any], clamps: bool = True
) -> Weights:
    """Returns the base plus the deltas times coefficients of least entropy."""
    base, entropies = doubles(case.base), Entropies(case)
    names, by_layer, clamp = (
        list(SHAPES),
        settings.get("by", "layer") == "layer",
        settings.get("clamp", clamps),
    )
    stacked = {name: np.array([delta[name] for delta in deltas]) for name in names}
    values = np.full((len(deltas), len(names) if by_layer else 1), settings.get("start", 0.3))
    start, adam = values, Adam(settings.get("rate", 1e-3))

    def weights() -> Weights:
        used = np.broadcast_to(np.clip(values, 0, 1) if clamp else values, (len(deltas), len(names)))
        return {
            name: base[name] + np.tensordot(used[:, column], stacked[name], 1)
            for column, name in enumerate(names)
        }

    before = entropies.mean(weights())
    for _ in range(settings["steps"]):
        by_weight = entropies.slopes(weights())
        slopes = np.array([[(by_weight[name] * delta[name]).sum() for name in names] for delta in deltas])
        slopes = slopes if by_layer else slopes.sum(axis=1, keepdims=True)
        values = adam.step(values, np.where((values >= 0) & (values <= 1), slopes, 0) if clamp else slopes)
    values = values if entropies.mean(weights()) < before else start
    return weights()


def deltas_of(case: Perceptrons) -> list[Weights]:
    return [
        {name: doubles(state)[name] - doubles(case.base)[name] for name in SHAPES} for state in case.states
    ]


def adamerging(case: Perceptrons, weights: list[float], settings: dict[str, Any]) -> Weights:
    return trained(case, deltas_of(case), settings)


def adamerging_plus(case: Perceptrons, weights: list[float], settings: dict[str, Any]) -> Weights:
    deltas, kept = deltas_of(case), []
    for delta in deltas:
        flat = np.sort(np.abs(np.concatenate([each.reshape(-1) for each in delta.values()])))[::-1]
        rank = int(settings.get("density", 0.2) * flat.size)
        kept.append({name: np.where(np.abs(each) >= flat[rank], each, 0) for name, each in delta.items()})
    votes = {name: np.sign(sum(delta[name] for delta in kept)) for name in SHAPES}
    tie = 1 if sum(each.sum() for each in votes.values()) > 0 else -1
    signs = {name: np.where(each == 0, tie, each) for name, each in votes.items()}
    agreeing = [
        {name: np.where(each * signs[name] > 0, each, 0) for name, each in delta.items()} for delta in kept
    ]
    return trained(case, agreeing, settings)


# --- DF-Merge ---------------------------------------------------------------------------------------------


def accuracy(case: Perceptrons, weights: Weights) -> float:
    """Returns the accuracy on all examples in %, the mean over the tasks."""
    answers = [
        forward(weights, doubles(state)["head.weight"], inputs.astype(float))[2].argmax(axis=1)
        for state, inputs in zip(case.states, case.inputs, strict=True)
    ]
    return float(
        100 * np.mean([(each == labels).mean() for each, labels in zip(answers, case.labels, strict=True)])
    )


def df_merge(case: Perceptrons, weights: list[float], settings: dict[str, Any]) -> Weights:
    """Returns the merge at the scales that were found."""
    base, above, below = doubles(case.base), dict.fromkeys(SHAPES, 0.0), dict.fromkeys(SHAPES, 0.0)
    scales = list(settings["report"]["scales"].values())
    for scale, state, delta, inputs in zip(scales, case.states, deltas_of(case), case.inputs, strict=True):
        model = {name: base[name] + scale * delta[name] for name in SHAPES}
        chosen = inputs[: settings["fisher_exemplars"]].astype(float)
        for name, each in information(model, doubles(state)["head.weight"], chosen).items():
            above[name] = above[name] + scale * (each + 1e-12) * delta[name]
            below[name] = below[name] + each + 1e-12
    found = {name: base[name] + len(scales) * above[name] / below[name] for name in SHAPES}
    assert accuracy(case, found) == settings["report"]["accuracy"]
    return found


# --- under a mask -----------------------------------------------------------------------------------------


def mask_of(logits: Weights, settings: dict[str, Any], step: int | None) -> Weights:
    """Returns the mask of a step, or the mean one, before it is divided by its mean."""
    found = {}
    for name, each in logits.items():
        key = hashlib.sha256(f"{settings.get('seed', 0)}\0step {step}\0{name}".encode()).digest()
        bits = np.random.PCG64(int.from_bytes(key, "little")).random_raw(each.size)
        uniform = ((bits >> np.uint64(11)) * 2.0**-53).reshape(each.shape)
        noise = 0 if step is None else np.log(uniform) - np.log(1 - uniform)
        found[name] = 1 / (1 + np.exp(-(each + noise) / settings.get("temperature", 0.5)))
    return found


class MaskSteps:
    """A mask under Adam, and the models under it."""

    def __init__(self, case: Perceptrons, settings: dict[str, Any], rate: float) -> None:
        self.base, self.settings, self.entropies = doubles(case.base), settings, Entropies(case)
        self.logits = {name: np.zeros(shape) for name, shape in SHAPES.items()}
        self.adams = {name: Adam(rate) for name in SHAPES}

    def model(self, mask: Weights, summed: Weights) -> Weights:
        return {name: self.base[name] + mask[name] / mask[name].mean() * summed[name] for name in SHAPES}

    def slopes(self, step: int, summed: Weights) -> Weights:
        return self.entropies.slopes(self.model(mask_of(self.logits, self.settings, step), summed))

    def move(self, step: int, summed: Weights) -> None:
        mask, by_weight = mask_of(self.logits, self.settings, step), self.slopes(step, summed)
        for name, shares in mask.items():
            by_mask, count, mean = by_weight[name] * summed[name], shares.size, shares.mean()
            by_share = by_mask / mean - (by_mask * shares).sum() / (count * mean**2)
            by_logit = by_share * shares * (1 - shares) / self.settings.get("temperature", 0.5)
            self.logits[name] = self.adams[name].step(self.logits[name], by_logit)

    def final(self) -> Weights:
        mask = mask_of(
            self.logits, self.settings, -1 if self.settings.get("final", "sample") == "sample" else None
        )
        return {name: each / each.mean() for name, each in mask.items()}


def concrete_ta(case: Perceptrons, weights: list[float], settings: dict[str, Any]) -> Weights:
    steps = MaskSteps(case, settings, settings.get("rate", 1e-3))
    deltas = deltas_of(case)
    summed = {name: settings.get("lambda", 0.3) * sum(delta[name] for delta in deltas) for name in SHAPES}
    for step in range(settings["steps"]):
        steps.move(step, summed)
    plain = {name: steps.base[name] + summed[name] for name in SHAPES}
    found = steps.model(steps.final(), summed)
    return found if steps.entropies.mean(found) < steps.entropies.mean(plain) else plain


def concrete_am(case: Perceptrons, weights: list[float], settings: dict[str, Any]) -> Weights:
    steps, deltas = MaskSteps(case, settings, settings.get("mask_rate", 1e-3)), deltas_of(case)
    start, by_layer, clamp = (
        settings.get("start", 0.3),
        settings.get("by", "layer") == "layer",
        settings.get("clamp", False),
    )
    inner, names = Adam(settings.get("inner_rate", 1.0)), list(SHAPES)

    def summed(values: Floats) -> Weights:
        used = np.broadcast_to(np.clip(values, 0, 1) if clamp else values, (len(deltas), len(names)))
        return {
            name: sum(used[task, column] * delta[name] for task, delta in enumerate(deltas))
            for column, name in enumerate(names)
        }

    first = np.full((len(deltas), len(names) if by_layer else 1), start)
    for step in range(settings["mask_steps"]):
        mask, by_weight = mask_of(steps.logits, settings, step), steps.slopes(step, summed(first))
        slopes = np.array(
            [[(by_weight[n] * mask[n] / mask[n].mean() * delta[n]).sum() for n in names] for delta in deltas]
        )
        steps.move(step, summed(inner.step(first, slopes if by_layer else slopes.sum(axis=1, keepdims=True))))
    mask = steps.final()
    found = trained(
        case, [{name: mask[name] * delta[name] for name in SHAPES} for delta in deltas], settings, False
    )
    plain = {name: steps.base[name] + summed(first)[name] for name in SHAPES}
    return found if steps.entropies.mean(found) < steps.entropies.mean(plain) else plain
