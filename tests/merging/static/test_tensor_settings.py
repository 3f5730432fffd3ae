"""Settings of a merge for all tensors, along the layers, for tensors by name, and for single tasks."""

from typing import Any

import pytest
import torch
from support.checkpoints import assert_same_state, message
from support.static_merges import merged, vectors_of

from flexswitch.codecs.errors import UsageError
from flexswitch.merging.static.tensor_settings import layer_places

BASE = {"embed": torch.zeros(2), "head": torch.zeros(2)} | {f"layers.{i}.w": torch.zeros(2) for i in range(5)}
ONE = {name: torch.tensor([1.0, -1.0]) for name in BASE}
TWO = {name: torch.tensor([4.0, 8.0]) for name in BASE}


def sums(found: Any) -> dict[str, list[float]]:
    return {name: tensor.tolist() for name, tensor in found.items()}


def test_weights_multiply_the_tasks() -> None:
    found = merged(
        BASE, vectors_of(BASE, [ONE, TWO]), "task-arithmetic", {"lambda": "1"}, weights={"b": -0.5}
    )
    assert_same_state(found, dict.fromkeys(BASE, torch.tensor([-1.0, -5.0])))


def test_a_list_of_values_is_interpolated_along_the_layers() -> None:
    for value in ("1,3,0", [1, 3, 0]):
        found = merged(BASE, vectors_of(BASE, [ONE]), "task-arithmetic", {"lambda": value})
        assert {name: float(tensor[0]) for name, tensor in found.items()} == {
            "embed": 1.0, "layers.0.w": 1.0, "layers.1.w": 2.0, "layers.2.w": 3.0,
            "layers.3.w": 1.5, "layers.4.w": 0.0, "head": 1.0,
        }  # fmt: skip


def test_the_last_matching_pattern_gives_the_value() -> None:
    overrides = [("layers.*", {"lambda": 2}), ("*.1.w", {"lambda": 3}), ("b:layers.*", {"weight": "0,1"})]
    found = merged(BASE, vectors_of(BASE, [ONE, TWO]), "task-arithmetic", {"lambda": 1}, overrides=overrides)
    assert {name: float(tensor[0]) for name, tensor in found.items()} == {
        "embed": 5.0, "layers.0.w": 2.0, "layers.1.w": 6.0, "layers.2.w": 6.0,
        "layers.3.w": 8.0, "layers.4.w": 10.0, "head": 5.0,
    }  # fmt: skip


def test_places_along_the_layers_go_from_0_to_1() -> None:
    names = [
        "model.embed_tokens.weight",
        "model.layers.0.a",
        "model.layers.10.a",
        "model.layers.20.a",
        "norm",
    ]
    assert list(layer_places(names).values()) == [0.0, 0.0, 0.5, 1.0, 0.0]
    assert layer_places(["layers.0.w"]) == {"layers.0.w": 1.0}
    stacks = [f"vision.layers.{i}.w" for i in range(5)] + [f"text.layers.{i}.w" for i in range(3)]
    assert list(layer_places(stacks).values()) == [0.0, 0.25, 0.5, 0.75, 1.0, 0.0, 0.25, 0.5]
    endless = f"layers.{'9' * 5000}.w"  # too long a number for int()
    assert layer_places([endless, "layers.2.w"]) == {endless: 0.0, "layers.2.w": 1.0}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"weights": {"c": 1}}, "--weight c: no task is named 'c' (known: a, b)"),
        ({"weights": {"a": "x"}}, "--weight a=x: expected a number"),
        ({"weights": {"a": "nan"}}, "--weight a=nan: expected a number"),
        ({"overrides": [("c:*", {"weight": 1})]}, "--set-for c:*: no task is named 'c' (known: a, b)"),
        ({"overrides": [("layer.*", {"lambda": 1})]}, "--set-for layer.*: no tensor of the base has such a name"),
        ({"overrides": [("*", {"lamda": 1})]}, "no setting of task-arithmetic is named 'lamda'; did you mean 'lambda'?"),
        ({"overrides": [("a:*", {"lambda": 1})]}, "--set-for a:*: lambda of task-arithmetic is the same for all tasks"),
        ({"settings": {"lambda": "1,x"}}, "1,x: expected numbers along the layers"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_before_anything_is_read(given: dict[str, Any], expected: str) -> None:
    vectors = vectors_of(BASE, [ONE, TWO])
    assert message(UsageError, lambda: merged(BASE, vectors, "task-arithmetic", **given)).startswith(expected)


def test_weights_that_sum_to_zero_have_no_mean() -> None:
    found = merged(BASE, vectors_of(BASE, [ONE, TWO]), "average", weights={"b": -1})
    assert message(UsageError, lambda: dict(found)) == (
        "the weights of tensor 'embed' sum to 0, expected another sum; linear with normalize=false does not "
        "divide by it"
    )


def test_unnormalized_weights_scale_the_models_themselves() -> None:
    base = {"w": torch.tensor([1.0, 2.0])}
    vectors = vectors_of(base, [{"w": torch.tensor([3.0, 2.0])}, {}])
    found = merged(base, vectors, "linear", {"normalize": "false"}, weights={"a": 0.5, "b": 0.25})
    assert sums(found) == {"w": [1.75, 1.5]}
    assert sums(merged(base, vectors_of(base, [{}]), "linear", {"normalize": False}, weights={"a": 2})) == {
        "w": [2.0, 4.0]
    }


@pytest.mark.parametrize(
    ("method", "tasks", "given", "expected"),
    [
        ("slerp", 1, {}, "slerp merges exactly 2 tasks, found 1"),
        ("model-stock", 1, {}, "model-stock merges at least 2 tasks, found 1"),
        ("nearswap", 2, {}, "nearswap merges exactly 1 task, found 2"),
        ("sce", 2, {"weights": {"a": 2}}, "--weight: sce takes no weights of tasks"),
        ("consensus-ta", 1, {}, "k=2: consensus-ta keeps what matters to so many tasks, expected at most 1"),
        ("consensus-ties", 2, {"settings": {"k": 3}}, "k=3: consensus-ties keeps"),
        ("della", 2, {"settings": {"density": 0.95}}, "density=0.95 with epsilon=0.07: expected probabilities between"),
    ],
)  # fmt: skip
def test_a_method_refuses_what_it_cannot_merge(
    method: str, tasks: int, given: dict[str, Any], expected: str
) -> None:
    vectors = vectors_of(BASE, [ONE, TWO][:tasks])
    assert message(UsageError, lambda: dict(merged(BASE, vectors, method, **given))).startswith(expected)
