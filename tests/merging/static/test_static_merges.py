"""Static merges of whole models: what is merged, what is not, and in which dtype."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import (
    assert_same_state,
    compressed,
    extracted,
    file_pair,
    memory_pair,
    message,
    use_small_blocks,
)
from support.static_merges import merged, vectors_of

from flexswitch.codecs.errors import InputError
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.task_vector import TaskVector


def test_the_average_of_models_is_the_mean_of_their_weights() -> None:
    base = {"w": torch.tensor([1.0, 2.0])}
    tasks = [{"w": torch.tensor([2.0, 2.0])}, {"w": torch.tensor([4.0, -6.0])}]
    assert_same_state(merged(base, vectors_of(base, tasks), "average"), {"w": torch.tensor([3.0, -2.0])})


def test_a_negative_lambda_makes_a_model_forget() -> None:
    base, task = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.5, 1.0])}
    found = merged(base, vectors_of(base, [task]), "task-arithmetic", {"lambda": -2.0})
    assert_same_state(found, {"w": torch.tensor([0.0, 4.0])})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merges_agree_with_float64(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(30, 40, generator=generator).to(dtype)}
    tasks = [{"w": base["w"] + 0.1 * torch.randn(30, 40, generator=generator).to(dtype)} for _ in range(4)]
    deltas = [task["w"].double().numpy() - base["w"].double().numpy() for task in tasks]
    for method, factor in (("average", 0.25), ("task-arithmetic", 0.3)):
        found = merged(base, vectors_of(base, tasks), method)["w"]
        assert found.dtype == dtype
        exact = base["w"].double().numpy() + factor * np.sum(deltas, axis=0)
        tolerance = torch.finfo(dtype).eps * 4
        np.testing.assert_allclose(found.double().numpy(), exact, rtol=tolerance, atol=tolerance)


def test_a_tensor_that_only_some_tasks_have_counts_as_zeros_for_the_others(tmp_path: Path) -> None:
    base = {"v": torch.zeros(2), "w": torch.zeros(2)}
    one = file_pair(tmp_path, base, {"v": torch.zeros(2), "w": torch.tensor([2.0, -2.0])})
    two = memory_pair(base, {"v": torch.ones(2), "w": torch.ones(2)}, include=("v",))
    vectors: dict[str, TaskVector] = {
        "one": ArtifactVector(compressed(one, tmp_path / "t.fsw", drop=0.0)),
        "two": extracted(two, tmp_path / "t.tv.safetensors"),
    }
    assert [list(vector.tensors) for vector in vectors.values()] == [["w"], ["v"]]
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
    vectors: dict[str, TaskVector] = {"a": memory_pair(base, base | {"w": torch.ones(2)}, include=("w",))}
    assert_same_state(merged(base, vectors, "average"), base | {"w": torch.ones(2)})


def test_empty_tensors_are_merged_to_empty_ones() -> None:
    base = {"e": torch.empty(0, 2), "w": torch.zeros(2)}
    found = merged(base, vectors_of(base, [{"w": torch.ones(2)}]), "task-arithmetic", {"lambda": 1.0})
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
    asked = merged(base, vectors, "average", dtype=torch.float32)
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
    stored: dict[str, TaskVector] = {
        name: extracted(pair, tmp_path / f"{name}.tv.safetensors")
        for name, pair in zip("cab", pairs.values(), strict=True)
    }
    assert_same_state(merged(base, stored, "average"), expected)


def test_a_task_vector_of_another_base_is_refused() -> None:
    vector = memory_pair({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    for base in ({"w": torch.zeros(1, 2)}, {"v": torch.zeros(2)}):
        assert message(InputError, lambda base=base: merged(base, {"a": vector}, "average")).startswith(
            "memory: is not the base of finetuned: its fingerprint is "
        )


def test_pcb_keeps_entries_that_all_have_the_largest_score() -> None:
    base = {"v": torch.zeros(4), "w": torch.zeros(12)}
    task = {"v": torch.full((4,), 0.5), "w": torch.tensor([1.0, -1.0, 1.0, 1.0]).repeat(3)}
    for count in (1, 2):
        found = merged(base, vectors_of(base, [task] * count), "pcb", {"lambda": 1.0})
        assert_same_state(found, {"v": torch.zeros(4), "w": task["w"]})
