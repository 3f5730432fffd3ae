"""Task vectors: base plus task vector restores the fine-tuned weights bit for bit."""

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support import laws
from support.checkpoints import (
    MemoryCheckpoint,
    State,
    assert_same_state,
    bits,
    compressed,
    extracted,
    file_pair,
    memory_pair,
    message,
    use_small_blocks,
)
from support.task_vectors import BASE, FINETUNED

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.records import RawTensor
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.checkpoints.dtypes import DTYPE_NAMES
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.raw_tensors import to_torch
from flexswitch.merging.task_vectors.restore import LazyState, restore, restored_tensors
from flexswitch.merging.task_vectors.task_name import task_name
from flexswitch.merging.task_vectors.task_vector import TaskVector, delta_tensor
from flexswitch.merging.task_vectors.task_vector_file import write_task_vector

TINY, LEAST, LARGEST = map(float, np.array([1e-45, 1.1754944e-38, 1.7e38], np.float32))
SPECIAL = [0.0, -0.0, TINY, -TINY, LEAST, 1.0, 1 + 2**-23, -1.0, 1e-8, 16777216.0, LARGEST, -LARGEST]
# The difference of two numbers of this range is finite.
FLOATS = st.sampled_from(SPECIAL) | st.floats(-LARGEST, LARGEST, width=32)
PAIRS = st.integers(1, 40).flatmap(
    lambda count: st.tuples(
        *[arrays(np.float32, count, elements=FLOATS, fill=st.nothing()) for _ in range(2)]
    )
)
HALVES = st.integers(0, 0xFFFF)


def merged(vector: TaskVector, base: State) -> LazyState:
    return LazyState(restored_tensors(MemoryCheckpoint(base), vector, 1.0, None))


def all_pairs_of(numbers: list[float]) -> tuple[np.ndarray, np.ndarray]:
    grid = np.array(np.meshgrid(numbers, numbers), np.float32).reshape(2, -1)
    return grid[0], grid[1]


@laws.settings(100, deadline=None)
@given(PAIRS)
@example(all_pairs_of(SPECIAL))
def test_base_plus_task_vector_is_the_fine_tuned_float32_bit_for_bit(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    base, finetuned = ({"w": torch.from_numpy(array.copy())} for array in pair)
    assert_same_state(merged(memory_pair(base, finetuned), base), finetuned)


@laws.settings(40, deadline=None)
@given(PAIRS)
@example(all_pairs_of(SPECIAL))
def test_a_task_vector_file_restores_the_fine_tuned_float32_bit_for_bit(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    base, finetuned = ({"w": torch.from_numpy(array.copy())} for array in pair)
    with tempfile.TemporaryDirectory() as folder:
        vector = extracted(memory_pair(base, finetuned), Path(folder) / "t.tv.safetensors")
        assert_same_state(restore(MemoryCheckpoint(base), vector), finetuned)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@laws.settings(80, deadline=None)
@given(patterns=st.lists(st.tuples(HALVES, HALVES), min_size=1, max_size=60))
def test_checkpoints_of_16_bits_are_restored_bit_for_bit(
    dtype: torch.dtype, patterns: list[tuple[int, int]]
) -> None:
    base, finetuned = torch.tensor(patterns, dtype=torch.uint16).view(dtype).T.contiguous()
    difference = finetuned.to(torch.float32) - base.to(torch.float32)
    base, finetuned = base[difference.isfinite()], finetuned[difference.isfinite()]
    found = merged(memory_pair({"w": base}, {"w": finetuned}), {"w": base})
    assert_same_state(found, {"w": finetuned})


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_checkpoints_of_8_bits_are_restored_bit_for_bit(dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    finite = every[every.to(torch.float32).isfinite()]
    base, finetuned = finite.repeat(len(finite)), finite.repeat_interleave(len(finite))
    found = merged(memory_pair({"w": base}, {"w": finetuned}), {"w": base})
    assert_same_state(found, {"w": finetuned})


def test_a_float64_checkpoint_is_restored_as_float32() -> None:
    base, finetuned = torch.tensor([0.1, 1e-30]).double(), torch.tensor([0.3, 1 / 3], dtype=torch.float64)
    found = merged(memory_pair({"w": base}, {"w": finetuned}), {"w": base})
    assert_same_state(found, {"w": finetuned.float().double()})


def test_the_sign_of_a_zero_is_restored() -> None:
    base, finetuned = torch.tensor([0.0, -0.0, 0.0, -0.0, 5.0]), torch.tensor([0.0, 0.0, -0.0, -0.0, -0.0])
    pair = memory_pair({"w": base}, {"w": finetuned})
    assert bits(merged(pair, {"w": base})["w"]) == bits(finetuned)
    assert pair.exact("w")[0].tolist() == [1, 2, 4]  # an unchanged -0 is the base's own


def test_weights_that_rounding_would_miss_are_stored_exactly() -> None:
    pair = memory_pair({"w": torch.tensor([1e8, 1.0, 3e8])}, {"w": torch.tensor([1.5, 2.0, 0.1])})
    positions, values = pair.exact("w")
    assert positions.tolist() == [0, 2]
    assert values.tolist() == [1.5, np.float32(0.1)]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_weights_that_are_not_finite_are_refused_with_the_tensor_s_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: float, side: str
) -> None:
    use_small_blocks(monkeypatch)
    states = {name: {"v": torch.zeros(3), "w": torch.zeros(40)} for name in ("base", "finetuned")}
    states[side]["w"][20] = number
    pair = memory_pair(**states)
    path = tmp_path / "t.tv.safetensors"
    found = message(InputError, lambda: write_task_vector(pair, path, "t", "float32", False))
    assert found == (
        "finetuned: tensor 'w' minus the base's is not finite near entry 16; "
        "one of the two holds NaN, infinite or huge weights"
    )
    assert list(tmp_path.iterdir()) == []


def test_weights_too_far_apart_for_float32_are_refused() -> None:
    pair = memory_pair({"w": torch.tensor([3e38])}, {"w": torch.tensor([-3e38])})
    assert "huge weights" in message(InputError, lambda: list(pair.blocks("w")))


def test_a_delta_is_the_same_in_blocks_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, finetuned = {"w": torch.randn(5, 9) * 1e4}, {"w": torch.randn(5, 9)}
    pair = file_pair(tmp_path, base, finetuned)
    whole = delta_tensor(pair, "w")
    use_small_blocks(monkeypatch)
    vector = extracted(pair, tmp_path / "t.tv.safetensors")
    artifact = ArtifactVector(compressed(pair, tmp_path / "t.fsw", "p-discard", drop=0.0))
    for each in (pair, vector, artifact):
        assert [len(block) for block in each.blocks("w")] == [16, 16, 13]
        assert torch.equal(delta_tensor(each, "w"), whole)
    assert len(vector.exact("w")[0])
    assert_same_state(restore(str(tmp_path / "base.safetensors"), vector), finetuned)


@pytest.mark.parametrize("lambda_", [0.0, 0.5, -1.0, 2.0])
def test_lambda_scales_the_task_vector(tmp_path: Path, lambda_: float) -> None:
    base = {"n": torch.tensor(3), "w": torch.tensor([1e9, 2.0, -4.0])}
    finetuned = base | {"w": torch.tensor([1.5, 3.0, -4.25]), "head": torch.tensor([7.0])}
    pair = file_pair(tmp_path, base, finetuned)
    delta = finetuned["w"] - base["w"]
    for vector in (pair, extracted(pair, tmp_path / "t.tv.safetensors")):
        state = restore(MemoryCheckpoint(base), vector, lambda_)
        assert_same_state(state, finetuned | {"w": base["w"] + lambda_ * delta})


def test_an_output_dtype_is_that_of_the_floating_tensors(tmp_path: Path) -> None:
    outputs = restored_tensors(
        MemoryCheckpoint(BASE), file_pair(tmp_path, BASE, FINETUNED), 1.0, torch.float16
    )
    found = {name: output.info.dtype for name, output in outputs.items()}
    assert found == {
        "counter": "I64",
        "empty.weight": "F16",
        "head.mask": "BOOL",
        "head.weight": "F16",
        "w.bias": "F16",
        "w.weight": "F16",
    }
    state = LazyState(outputs)
    assert len(state) == 6
    assert torch.equal(state["w.weight"], FINETUNED["w.weight"].to(torch.float16))
    assert state["empty.weight"].shape == (0, 3)


@pytest.mark.parametrize(
    "tensor",
    [torch.tensor(2.5), torch.empty(0, 3), torch.tensor([[True], [False]]), torch.ones(3).bfloat16()],
)
def test_raw_bytes_become_a_tensor_again(tensor: torch.Tensor) -> None:
    data = bytes(tensor.reshape(-1).view(torch.uint8).tolist())
    raw = RawTensor(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), data)
    assert_same_state({"w": to_torch(raw)}, {"w": tensor})


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/sst2.tv.safetensors", "sst2"),
        ("sst2.safetensors", "sst2"),
        ("models/sst2", "sst2"),
        ("models/sst2/", "sst2"),
        ("sst2.v1.fsw", "sst2.v1"),
        ("pytorch_model.bin", "pytorch_model"),
        ("org/bert-sst2@v1.0", "bert-sst2"),
    ],
)
def test_a_task_is_named_after_the_stem(path: str, name: str) -> None:
    assert task_name(path) == name


@pytest.mark.parametrize("path", [".", "./", "../sst2/.", "old/.."])
def test_a_task_is_named_after_the_folder_that_a_path_leads_to(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sst2").mkdir()
    monkeypatch.chdir(tmp_path / "sst2")
    assert task_name(path) == "sst2"


def test_the_root_names_no_task() -> None:
    assert message(InputError, lambda: task_name("/")) == "/: has no name for its task; give one: NAME=/"


def test_an_artifact_knows_its_extras_without_reading_them(tmp_path: Path) -> None:
    pair = file_pair(tmp_path, BASE, FINETUNED)
    vector = ArtifactVector(compressed(pair, tmp_path / "t.fsw"))
    assert vector.extras == pair.extras
    assert vector.extras["head.weight"] == TensorInfo("F16", (3,))
    assert (vector.source, vector.parameters, vector.model) == (str(tmp_path / "t.fsw"), 9, pair.model)
    assert [len(part) for part in vector.exact("w.bias")] == [0, 0]
    assert {name: vector.extra(name) for name in vector.extras} == {n: pair.extra(n) for n in pair.extras}
