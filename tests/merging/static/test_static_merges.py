"""Static merges of tensors that can be checked by hand, and compared with numpy in float64."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import (
    MemoryCheckpoint,
    State,
    assert_same_state,
    compressed,
    extracted,
    file_pair,
    memory_pair,
    message,
    use_small_blocks,
)
from torch import Tensor

from flexswitch.codecs.errors import ArtifactError
from flexswitch.merging.static.average import average
from flexswitch.merging.static.merge import merged_tensors
from flexswitch.merging.static.task_arithmetic import task_arithmetic
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.restore import LazyState
from flexswitch.merging.task_vectors.task_vector import TaskVector

DELTAS = [torch.tensor([[1.0, -2.0, 0.0]]), torch.tensor([[3.0, 2.0, 0.0]]), torch.tensor([[-1.0, 3.0, 6.0]])]
ONES = [1.0, 1.0, 1.0]


def merged(
    base: State, vectors: list[TaskVector], method: str, dtype: torch.dtype | None = None, **settings: float
) -> LazyState:
    by_name = {key.rstrip("_"): value for key, value in settings.items()}
    return LazyState(merged_tensors(MemoryCheckpoint(base), vectors, method, by_name, dtype))


def vectors_of(base: State, tasks: list[State]) -> list[TaskVector]:
    return [memory_pair(base, base | task) for task in tasks]


def test_the_average_is_the_mean_of_the_deltas() -> None:
    assert average(DELTAS, ONES).tolist() == [[1.0, 1.0, 2.0]]
    assert average(DELTAS, [2.0, 1.0, 1.0]).tolist() == [[1.0, 0.25, 1.5]]


@pytest.mark.parametrize(
    ("lambda_", "expected"), [(1.0, [3, 3, 6]), (0.5, [1.5, 1.5, 3]), (-1.0, [-3, -3, -6])]
)
def test_task_arithmetic_adds_the_deltas_times_lambda(lambda_: float, expected: list[float]) -> None:
    assert task_arithmetic(DELTAS, ONES, lambda_=lambda_).tolist() == [expected]


def test_lambda_of_task_arithmetic_defaults_to_0_3() -> None:
    assert torch.equal(task_arithmetic(DELTAS, ONES), 0.3 * torch.tensor([[3.0, 3.0, 6.0]]))
    assert task_arithmetic(DELTAS, [1.0, -1.0, 0.0], lambda_=1.0).tolist() == [[-2.0, -4.0, 0.0]]


@pytest.mark.parametrize("method", [average, task_arithmetic])
def test_a_merge_does_not_change_its_deltas(method: Callable[..., Tensor]) -> None:
    before = [delta.clone() for delta in DELTAS]
    assert method(DELTAS, ONES).shape == (1, 3)
    assert all(torch.equal(delta, old) for delta, old in zip(DELTAS, before, strict=True))


def test_the_average_of_models_is_the_mean_of_their_weights() -> None:
    base = {"w": torch.tensor([1.0, 2.0])}
    tasks = [{"w": torch.tensor([2.0, 2.0])}, {"w": torch.tensor([4.0, -6.0])}]
    assert_same_state(merged(base, vectors_of(base, tasks), "average"), {"w": torch.tensor([3.0, -2.0])})


def test_a_negative_lambda_makes_a_model_forget() -> None:
    base, task = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.5, 1.0])}
    found = merged(base, vectors_of(base, [task]), "task-arithmetic", lambda_=-2.0)
    assert_same_state(found, {"w": torch.tensor([0.0, 4.0])})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merges_agree_with_float64(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(30, 40, generator=generator).to(dtype)}
    tasks = [{"w": base["w"] + 0.1 * torch.randn(30, 40, generator=generator).to(dtype)} for _ in range(4)]
    deltas = [task["w"].double().numpy() - base["w"].double().numpy() for task in tasks]
    for method, factor in (("average", 0.25), ("task-arithmetic", 0.3)):
        settings = {"lambda_": 0.3} if method == "task-arithmetic" else {}
        found = merged(base, vectors_of(base, tasks), method, **settings)["w"]
        assert found.dtype == dtype
        exact = base["w"].double().numpy() + factor * np.sum(deltas, axis=0)
        tolerance = torch.finfo(dtype).eps * 4
        np.testing.assert_allclose(found.double().numpy(), exact, rtol=tolerance, atol=tolerance)


def test_a_tensor_that_only_some_tasks_have_counts_as_zeros_for_the_others(tmp_path: Path) -> None:
    base = {"v": torch.zeros(2), "w": torch.zeros(2)}
    one = file_pair(tmp_path, base, {"v": torch.zeros(2), "w": torch.tensor([2.0, -2.0])})
    two = memory_pair(base, {"v": torch.ones(2), "w": torch.ones(2)}, include=("v",))
    vectors: list[TaskVector] = [
        ArtifactVector(compressed(one, tmp_path / "t.fsw", drop=0.0)),
        extracted(two, tmp_path / "t.tv.safetensors"),
    ]
    assert [list(vector.tensors) for vector in vectors] == [["w"], ["v"]]
    assert_same_state(
        merged(base, vectors, "average"), {"v": torch.tensor([0.5, 0.5]), "w": torch.tensor([1.0, -1.0])}
    )


def test_heads_and_buffers_are_not_merged() -> None:
    base = {"n": torch.tensor([1, 2]), "s": torch.tensor(0.5), "w": torch.zeros(2)}
    task = {"n": torch.tensor([5, 6]), "s": torch.tensor(2.5), "w": torch.ones(2), "head": torch.ones(3)}
    found = merged(base, vectors_of(base, [task]), "average")
    assert_same_state(found, base | {"w": torch.ones(2)})


def test_tensors_no_task_changed_are_the_base_s_bit_for_bit() -> None:
    base = {"e": torch.empty(0, 2), "v": torch.tensor([-0.0, float("nan")]), "w": torch.zeros(2)}
    vectors: list[TaskVector] = [memory_pair(base, base | {"w": torch.ones(2)}, include=("w",))]
    assert_same_state(merged(base, vectors, "average"), base | {"w": torch.ones(2)})


def test_empty_tensors_are_merged_to_empty_ones() -> None:
    base = {"e": torch.empty(0, 2), "w": torch.zeros(2)}
    found = merged(base, vectors_of(base, [{"w": torch.ones(2)}]), "task-arithmetic", lambda_=1.0)
    assert_same_state(found, base | {"w": torch.ones(2)})


def test_the_output_dtype_is_the_requested_one_or_the_base_s() -> None:
    base = {
        "n": torch.tensor([1]),
        "v": torch.ones(2, dtype=torch.float16),
        "w": torch.ones(2).to(torch.bfloat16),
    }
    vectors = vectors_of(base, [{"v": torch.tensor([1.5, 2.5]), "w": torch.tensor([1.25, 2.0])}])
    kept = merged(base, vectors, "average")
    assert {name: tensor.dtype for name, tensor in kept.items()} == {
        "n": torch.int64,
        "v": torch.float16,
        "w": torch.bfloat16,
    }
    asked = merged(base, vectors, "average", torch.float32)
    assert_same_state(
        asked, {"n": torch.tensor([1]), "v": torch.tensor([1.5, 2.5]), "w": torch.tensor([1.25, 2.0])}
    )


def test_a_merge_does_not_depend_on_what_tasks_are_called_or_how_they_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"w": torch.randn(7, 5)}
    tasks = [{"w": torch.randn(7, 5)} for _ in range(3)]
    pairs = vectors_of(base, tasks)
    expected = dict(merged(base, pairs, "average"))
    use_small_blocks(monkeypatch)
    stored: list[TaskVector] = [
        extracted(pair, tmp_path / f"{name}.tv.safetensors") for name, pair in zip("cab", pairs, strict=True)
    ]
    assert_same_state(merged(base, stored, "average"), expected)


def test_a_task_vector_that_does_not_fit_the_base_is_refused() -> None:
    vector = memory_pair({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    for base, held in (
        ({"w": torch.zeros(1, 2)}, "has it with the shape [1, 2]"),
        ({"v": torch.zeros(2)}, "has none of that name"),
    ):
        assert message(ArtifactError, lambda base=base: merged(base, [vector], "average")) == (
            f"finetuned: tensor 'w' has the shape [2] and the base memory {held}; make the task vector again"
        )
