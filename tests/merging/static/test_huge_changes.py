"""Changes as large as float32 goes: every merge is its reference's, or is refused, and never quietly the base."""

from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import State, message
from support.merge_case import Case
from support.shared_zoos import save_states
from support.static_cases import CASES, models, reference
from support.static_merges import merged, vectors_of

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.merging.commands.pack import pack
from flexswitch.merging.methods.registry import get_method, method_names

LARGE, HUGE = 2.0**58, 2.0**126  # the size of the largest change: as it is merged, and as it is not


def scaled(tasks: int, kind: str, size: float) -> tuple[State, list[State]]:
    """Returns a base of ones and fine-tuned states whose largest weight is between half of `size` and it."""
    base, states = models(tasks, kind)
    deltas = [{name: state[name] - base[name] for name in base} for state in states]
    largest = max(float(delta.abs().max()) for each in deltas for delta in each.values())
    factor = size * 2.0 ** -np.ceil(np.log2(largest))
    ones = {name: torch.ones_like(tensor) for name, tensor in base.items()}  # zeros have no direction
    scaled = [{name: delta.double() * factor for name, delta in each.items()} for each in deltas]
    return ones, [{name: (1 + delta).float() for name, delta in each.items()} for each in scaled]


@pytest.mark.parametrize(("tasks", "kind"), [(3, "normal"), pytest.param(8, "ties", marks=pytest.mark.deep)])
@pytest.mark.parametrize(("method", "settings"), CASES, ids=str)
def test_a_merge_of_huge_changes_is_right_or_refused(
    method: str, settings: dict[str, Any], tasks: int, kind: str
) -> None:
    few, many = get_method(method, "merge").tasks
    tasks = min(max(few, tasks), many or tasks)
    for size in (LARGE, HUGE):
        base, states = scaled(tasks, kind, size)
        found = merged(base, vectors_of(base, states), method, settings)
        deltas = [{name: (state[name] - base[name]).double().numpy() for name in base} for state in states]
        own = {name: each.double().numpy() for name, each in base.items()}
        expected = reference(method)(Case(own, deltas, [1.0] * tasks, settings))
        refusals = {}
        for name in expected:
            try:
                weights = found[name].numpy()
            except InputError as reason:
                refusals[name] = str(reason)
            else:
                np.testing.assert_allclose(weights / size, expected[name] / size, atol=1e-6, err_msg=name)
        assert all(f", and {method} takes 4.612e+18 of all tasks" in each for each in refusals.values())
        assert size == HUGE or not refusals
        changed = any(np.any(expected[name] != own[name]) for name in expected)
        assert size == LARGE or refusals or not changed


def test_a_weight_counts_for_the_size_of_a_change() -> None:
    base, states = scaled(2, "normal", LARGE)
    found = merged(base, vectors_of(base, states), "consensus-ta", weights={"b": 1e20})
    assert message(InputError, lambda: found["norm"]).startswith("tensor 'norm': its change under 'b', times")


@pytest.mark.parametrize("method", method_names("shared"))
def test_a_shared_vector_of_huge_changes_is_refused(tmp_path: Any, method: str) -> None:
    base, states = scaled(3, "normal", HUGE)
    saved, sources = save_states(tmp_path, base, states)
    found = message(InputError, lambda: pack(sources, tmp_path / "zoo", share=method, base=saved))
    assert f", and {method} takes 4.612e+18 of all tasks together, whose squares float32 holds" in found
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize("form", ["pairs", "directions", "sum"])
def test_the_scores_of_a_hundred_tasks_are_numbers(form: str) -> None:
    """exp of the number of tasks, as pcb has it, is beyond float32 from 89 on."""
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.zeros(9, 7)}
    states = [{"w": torch.randn(9, 7, generator=generator)} for _ in range(100)]
    names = [f"t{number}" for number in range(100)]
    vectors = dict(zip(names, vectors_of_all(base, states), strict=True))
    settings = {"form": form, "density": 0.3}
    found = merged(base, vectors, "pcb", settings)["w"].numpy()
    deltas = [{"w": state["w"].double().numpy()} for state in states]
    case = Case({"w": base["w"].double().numpy()}, deltas, [1.0] * 100, settings)
    np.testing.assert_allclose(found, reference("pcb")(case)["w"], atol=1e-5)


def vectors_of_all(base: State, states: list[State]) -> list[Any]:
    return [vectors_of(base, [state])["a"] for state in states]


@pytest.mark.parametrize("value", ["1e39", "-1e39", 1e300])
def test_a_number_that_float32_does_not_hold_is_named(value: Any) -> None:
    base, states = scaled(2, "normal", 1.0)
    vectors = vectors_of(base, states)
    found = message(UsageError, lambda: merged(base, vectors, "ties", {"lambda": value}))
    expected = "expected a number from -3.40282e+38 to 3.40282e+38, which float32 holds"
    assert found == f"setting lambda={value} of ties: {expected}"
    found = message(UsageError, lambda: merged(base, vectors, "ties", weights={"a": value}))
    assert found == f"--weight a={value}: {expected}"
