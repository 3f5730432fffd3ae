"""Every static merge against its plain reference: odd shapes, ties, zeros, one task, eight tasks."""

from typing import Any

import numpy as np
import pytest
import torch
from support.merge_case import Case
from support.static_cases import CASES, models, reference
from support.static_merges import NAMES, merged, vectors_of

from flexswitch.merging.methods.registry import get_method

WEIGHTS = [1.0, 0.5, 2.0, 0.25, 1.5, 1.0, 0.75, 1.25]
QUICK = {(1, "ties"), (2, "normal"), (8, "ties")}
MODELS = [
    pytest.param(tasks, kind, marks=[] if (tasks, kind) in QUICK else [pytest.mark.deep])
    for tasks in (1, 2, 3, 8)
    for kind in ("normal", "ties")
]


@pytest.mark.parametrize(("tasks", "kind"), MODELS)
@pytest.mark.parametrize(("method", "settings"), CASES, ids=str)
def test_a_merge_is_its_reference_s(method: str, settings: dict[str, Any], tasks: int, kind: str) -> None:
    few, many = get_method(method, "merge").tasks
    if method.startswith("consensus"):
        few = settings.get("k", 2)
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


@pytest.mark.parametrize("of", ["deltas", "models"])
def test_opposite_vectors_are_merged_along_the_chord(of: str) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.zeros(200, 3) if of == "deltas" else torch.full((200, 3), 2.0**-6)}
    one = torch.randn(200, 3, generator=generator)
    other = -torch.rand(200, 1, generator=generator) * one
    moved = torch.zeros(200, 3) if of == "deltas" else -base["w"]
    vectors = vectors_of(base, [{"w": base["w"] + moved + each} for each in (one, other)])
    found = merged(base, vectors, "nuslerp", {"of": of, "flatten": False})["w"]
    torch.testing.assert_close(found, base["w"] + moved + (one + other) / 2, atol=1e-5, rtol=0)
