"""Merges from examples in plain numpy and float64, of perceptrons; each is called as its method, with `_` for `-`."""

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
