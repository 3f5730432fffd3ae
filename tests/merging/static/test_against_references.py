"""Every static merge against its plain reference: odd shapes, ties, zeros, one task, eight tasks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support import matrix_references, trimming_references, vector_references
from support.checkpoints import State
from support.merge_case import Case, Weights
from support.static_merges import NAMES, merged, vectors_of

from flexswitch.merging.methods.registry import STATIC_MERGES, get_method

SHAPES = {
    "layers.0.w": (7, 5),
    "layers.1.w": (6, 1),
    "norm": (11,),
    "one": (1,),
    "rows.w": (3, 2, 4),
    "zero": (4, 3),
}
# A method's settings that are tried beside its defaults.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "linear": [{"normalize": False}],
    "task-arithmetic": [{"lambda": -1.5}],
    "ties": [
        {"density": 0.5, "election": "count", "merge": "sum", "lambda": 0.3},
        {"density": 1.0, "merge": "max"},
        {"scope": "tensor", "density": 0.29},
        {"scope": "tensor", "density": 0.5, "election": "count", "merge": "max"},
    ],
    "dare-linear": [
        {"density": 0.3, "rescale": "l1", "normalize": True, "lambda": 1.0, "seed": 3},
        {"density": 0.0},
    ],
    "dare-ties": [{"density": 1.0, "rescale": "none"}, {"merge": "sum", "election": "count"}],
    "della": [{"density": 0.5, "epsilon": 0.4, "rescale": "l1"}, {"density": 1.0}],
    "della-linear": [{"density": 0.3, "epsilon": 0.2, "seed": 9}],
    "breadcrumbs": [
        {"density": 0.7, "gamma": 0.02},
        {"density": 0.9, "gamma": 0.5},
        {"density": 0.0, "gamma": 1.0},
    ],
    "breadcrumbs-ties": [{"density": 0.5, "gamma": 0.2, "merge": "sum"}],
    "consensus-ta": [{"k": 1, "mask_lambda": 0.2, "lambda": 1.0}, {"k": 0}],
    "consensus-ties": [{"k": 3, "density": 0.5, "mask_lambda": 0.6}],
    "iso-c": [{"lambda": 1.5}],
    "tsv-m": [{"lambda": 0.7}],
    "pcb": [
        {"form": "directions", "density": 0.3, "lambda": 0.5},
        {"form": "sum", "density": 0.1, "clip": 0.0001},
        {"density": 1.0, "clip": 0.2},
    ],
    "slerp": [{"t": 0.2}, {"t": 1.0}],
    "model-stock": [{"flatten": False}],
    "nuslerp": [
        {"of": "models"},
        {"flatten": False},
        {"flatten": False, "columns": True},
        {"of": "models", "flatten": False, "columns": True},
    ],
    "multislerp": [{"of": "models"}, {"normalize": False}],
    "karcher": [{"max_iter": 3, "tol": 1e-9}],
    "sce": [{"density": 0.5}, {"density": 0.0}],
    "nearswap": [{"t": 0.05}, {"t": 0.0}],
    "ram": [{"epsilon": 0.05}],
    "ram-plus": [{"epsilon": 0.05, "r": 0.5, "alpha": 2.0}],
}
CASES = [(method, settings) for method in STATIC_MERGES for settings in ({}, *VARIANTS.get(method, []))]
WEIGHTS = [1.0, 0.5, 2.0, 0.25, 1.5, 1.0, 0.75, 1.25]


def models(tasks: int, kind: str) -> tuple[State, list[State]]:
    """Returns a base and fine-tuned states; kind "ties": of few values, so that many magnitudes are equal."""
    generator = torch.Generator().manual_seed(tasks)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    found = []
    for _ in range(tasks):
        deltas = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        if kind == "ties":  # multiples of a power of two, which float32 adds exactly
            base = {name: (tensor * 8).round() / 8 for name, tensor in base.items()}
            deltas = {name: (delta * 40).round() / 32 for name, delta in deltas.items()}
        deltas["zero"] = torch.zeros(SHAPES["zero"])
        found.append({name: base[name] + delta for name, delta in deltas.items()})
    return base, found


QUICK = {(1, "ties"), (2, "normal"), (8, "ties")}
MODELS = [
    pytest.param(tasks, kind, marks=[] if (tasks, kind) in QUICK else [pytest.mark.deep])
    for tasks in (1, 2, 3, 8)
    for kind in ("normal", "ties")
]


def reference(method: str) -> Callable[[Case], Weights]:
    """Returns the plain function that is called as a method."""
    name = method.replace("-", "_")
    modules = (trimming_references, vector_references, matrix_references)
    (found,) = (getattr(module, name) for module in modules if hasattr(module, name))
    return found


@pytest.mark.parametrize(("tasks", "kind"), MODELS)
@pytest.mark.parametrize(("method", "settings"), CASES, ids=str)
def test_a_merge_is_its_reference_s(method: str, settings: dict[str, Any], tasks: int, kind: str) -> None:
    few, many = get_method(method, "merge").tasks
    if not few <= tasks <= (many or tasks):
        return
    base, states = models(tasks, kind)
    for weights in ([1.0] * tasks, *([WEIGHTS[:tasks]] if get_method(method, "merge").weighted else [])):
        given = dict(zip(NAMES, weights, strict=False)) if weights != [1.0] * tasks else {}
        found = merged(base, vectors_of(base, states), method, settings, weights=given)
        deltas = [
            {name: (state[name] - base[name]).numpy().astype(np.float64) for name in base} for state in states
        ]
        case = Case(
            {name: tensor.double().numpy() for name, tensor in base.items()}, deltas, weights, settings
        )
        expected = reference(method)(case)
        for name, tensor in expected.items():
            np.testing.assert_allclose(found[name].numpy(), tensor, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("method", ["iso-c", "tsv-m"])
@pytest.mark.parametrize("size", [0.0, 1.0], ids=["LoRA", "merged LoRA"])
def test_singular_values_of_rounding_are_left_out(method: str, size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"w": size * torch.randn(24, 30, generator=generator)}
    factors = [torch.randn(2, 2, 30, generator=generator) for _ in range(3)]
    exact = [{"w": (b[:, :24].double().T @ a.double()).numpy()} for a, b in factors]  # of rank 2
    states = [{"w": base["w"] + torch.from_numpy(delta["w"]).float()} for delta in exact]
    found = merged(base, vectors_of(base, states), method)["w"]
    expected = reference(method)(Case({"w": base["w"].double().numpy()}, exact, [1.0] * 3))["w"]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_entries_of_equal_variance_are_selected_together() -> None:
    base = {"w": torch.zeros(2)}
    states = [{"w": torch.tensor(each) / 16} for each in ([-4.0, -1.0], [-4.0, -1.0], [-3.0, 0.0])]
    assert merged(base, vectors_of(base, states), "sce", {"density": 0.5})["w"].count_nonzero() == 2
