"""The static merges with settings that are tried, the models that they merge, and their plain references."""

from collections.abc import Callable
from typing import Any

import torch
from support import matrix_references, trimming_references, vector_references
from support.checkpoints import State
from support.merge_case import Case, Weights

from flexswitch.merging.methods.registry import STATIC_MERGES

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


def reference(method: str) -> Callable[[Case], Weights]:
    """Returns the plain function that is called as a method."""
    name = method.replace("-", "_")
    modules = (trimming_references, vector_references, matrix_references)
    (found,) = (getattr(module, name) for module in modules if hasattr(module, name))
    return found
