"""Adding a compressed tensor to weights in place, against torch's own arithmetic."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.sparse_tensors import BITS, LAWS, header, sparse_tensor

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.artifact_writer import ArtifactWriter, packed_tensor
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.sparse import SparseTensor, level_values
from flexswitch.codecs.storage import store
from flexswitch.merging.task_vectors import apply
from flexswitch.merging.task_vectors.add_task import add_task
from flexswitch.merging.task_vectors.apply import COMPILED_DTYPES, Addend

INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
each_dtype = pytest.mark.parametrize("dtype", COMPILED_DTYPES, ids=str)


def artifact_of(path: Path, sparse: SparseTensor, scale: float = 0.5, codec: str = "auto") -> Artifact:
    """Returns an artifact of one tensor 'w'."""
    with ArtifactWriter(path) as writer:
        writer.add_tensor("w", packed_tensor(sparse, store(sparse, codec), scale, "F32"))
        writer.finish(header())
    return open_artifact(path)


def expected(weights: torch.Tensor, sparse: SparseTensor, scale: float, lambda_: float) -> torch.Tensor:
    """Returns weights + λ·τ̂: float32 throughout, rounded once, untouched where nothing is added."""
    dense = np.concatenate([np.empty(0, np.float32), *sparse.dense_blocks(scale)])
    with np.errstate(all="ignore"):
        added = torch.from_numpy(dense * np.float32(lambda_)).reshape(weights.shape)
    return torch.where(added == 0, weights, (weights.float() + added).to(weights.dtype))


LEVELS = {16: torch.bfloat16, 32: torch.float32}


def assert_same_bits(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Fails where two tensors differ in any bit, but for which NaN a NaN is."""
    integers = INTEGERS[wanted.dtype]
    same = found.view(integers) == wanted.view(integers)
    assert bool((same | (found.isnan() & wanted.isnan())).all())


def any_weights(dtype: torch.dtype, count: int, seed: int) -> torch.Tensor:
    """Returns weights of every bit pattern there is: subnormal, −0, infinite, NaN."""
    width = 2 if dtype != torch.float32 else 4
    data = np.random.default_rng(seed).integers(0, 256, count * width, dtype=np.uint8)
    return torch.from_numpy(data).view(dtype)


def add_to_all(weights: torch.Tensor, values: np.ndarray) -> list[int]:
    """Adds a value to every weight; returns the entries that are refused since they would become infinite."""
    refused, start, places = [], 0, np.arange(len(values), dtype=np.uint32)
    while (index := apply.add_on_cpu(weights, places[start:], 0, values[start:])) >= 0:
        refused.append(start + index)
        start += index + 1
    return refused


def assert_added(found: torch.Tensor, refused: list[int], weights: torch.Tensor, values: np.ndarray) -> None:
    """Compares with torch's sums, except for those that make a finite weight infinite."""
    added = torch.from_numpy(values)
    wanted = torch.where(added == 0, weights, (weights.float() + added).to(weights.dtype))
    overflows = weights.isfinite() & ~wanted.isfinite()
    assert refused == overflows.nonzero().view(-1).tolist()
    assert_same_bits(found, torch.where(overflows, weights, wanted))


@each_dtype
@pytest.mark.parametrize("lambda_", [1.0, 0.3, -2.0])
def test_floating_levels_are_added_in_float32_and_rounded_once(dtype: torch.dtype, lambda_: float) -> None:
    count = 1 << 16
    generator = np.random.default_rng(1)
    sizes = (generator.standard_normal(count) * 10.0 ** generator.uniform(-9, 5, count)).astype(np.float32)
    levels = sizes.view(np.uint32)
    levels[:4] = [0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000]
    weights = any_weights(dtype, count, 2)
    found = weights.clone()
    values = apply.ScaledLevels(32, 1.0, lambda_).of(levels)
    refused = add_to_all(found, values)
    with np.errstate(all="ignore"):
        added = level_values(levels, 32, 1.0) * np.float32(lambda_)
    assert_added(found, refused, weights, added)
    assert len(refused) >= 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_plus_a_small_value_is_rounded_as_by_torch(dtype: torch.dtype) -> None:
    weights = torch.from_numpy(np.arange(1 << 16, dtype=np.uint16).view(np.int16)).view(dtype)
    for value in (2.0**-25, -(2.0**-24), 1e-7, 3.0e-5, 0.001, 65504.0):
        found = weights.clone()
        values = np.full(1 << 16, value, np.float32)
        assert_added(found, add_to_all(found, values), weights, values)


@each_dtype
@pytest.mark.parametrize("bits", [bits for bits in BITS if bits])
@pytest.mark.parametrize("codec", ["auto", "gaps-zstd", "bitmask", "rice"])
def test_only_the_kept_entries_of_a_live_tensor_change(
    tmp_path: Path, dtype: torch.dtype, bits: int, codec: str
) -> None:
    generator = np.random.default_rng(bits)
    marked = generator.random((40, 30)) < 0.1
    marked[5:25] = False  # so that row flags pay
    kept = np.flatnonzero(marked)
    levels = generator.integers(1, 1 << min(bits, 8), len(kept), np.uint64)
    if bits > 8:
        floats = torch.from_numpy(generator.standard_normal(len(kept))).to(LEVELS[bits])
        levels = floats.view(torch.uint16 if bits == 16 else torch.uint32).numpy().astype(np.uint64)
    sparse = sparse_tensor((40, 30), kept.tolist(), levels.tolist(), bits)
    artifact = artifact_of(tmp_path / "t.fsw", sparse, codec=codec)
    weights = any_weights(dtype, 1200, 3).reshape(40, 30)
    found = weights.clone()
    add_task({"w": found, "other": torch.zeros(1)}, artifact, 0.7, check_base=False)
    assert_same_bits(found, expected(weights, sparse, 0.5, 0.7))


def check_parts(path: Path, density: float, cuts: list[int], columns: int, seed: int) -> int:
    """Checks that weights added to in parts of so many rows are right; returns the number of blocks."""
    rows = sum(cuts)
    marked = np.random.default_rng(seed).random((rows, columns)) < density
    kept = np.flatnonzero(marked).tolist()
    sparse = sparse_tensor((rows, columns), kept, [1] * len(kept), 1)
    artifact = artifact_of(path, sparse)
    weights = torch.linspace(-1, 1, rows * columns)
    found, addend, start = weights.clone(), Addend(artifact, "w", 1.0), 0
    for cut in cuts:
        addend.add_to(found[start : start + cut * columns])
        start += cut * columns
    assert_same_bits(found, expected(weights, sparse, 0.5, 1.0))
    return len(list(artifact.entries("w")))


@LAWS
@given(
    density=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    cuts=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_the_sizes_of_the_parts_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, density: float, cuts: list[int], seed: int
) -> None:
    check_parts(tmp_path_factory.mktemp("parts") / "t.fsw", density, cuts, 3, seed)


@pytest.mark.parametrize("cuts", [[3000], [1, 999, 1621, 379], [2616, 384], [2617, 383]])
def test_the_parts_need_not_end_where_the_coded_blocks_do(tmp_path: Path, cuts: list[int]) -> None:
    assert check_parts(tmp_path / "t.fsw", 0.05, cuts, 400, 7) == 2


@pytest.mark.parametrize("dtype", [*COMPILED_DTYPES, torch.float64], ids=str)
def test_other_devices_compute_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "DEVICE_ENTRIES", 64)
    generator = np.random.default_rng(4)
    kept = np.flatnonzero(generator.random(1003) < 0.3)
    sparse = sparse_tensor((1003,), kept.tolist(), generator.integers(0, 16, len(kept)).tolist(), 4)
    weights = torch.from_numpy(generator.standard_normal(1003)).to(dtype)
    found = weights.clone()
    apply.add_on_device(found, sparse, apply.ScaledLevels(4, 0.5, -1.5), "w")
    wanted = expected(weights, sparse, 0.5, -1.5)
    assert torch.equal(found, wanted)


def test_adding_and_subtracting_restores_the_base_where_float32_is_exact(tmp_path: Path) -> None:
    sparse = sparse_tensor((8, 8), [1, 9, 63], [1, 0, 1], 1)
    artifact = artifact_of(tmp_path / "t.fsw", sparse)
    weights = torch.arange(64, dtype=torch.float32).reshape(8, 8)
    found = weights.clone()
    add_task({"w": found}, artifact, check_base=False)
    assert not torch.equal(found, weights)
    add_task({"w": found}, artifact, -1.0, check_base=False)
    assert torch.equal(found, weights)


def test_a_module_becomes_the_task_without_a_copy(tmp_path: Path) -> None:
    module = torch.nn.Linear(8, 8, bias=False)
    before, place = module.weight.detach().clone(), module.weight.data_ptr()
    sparse = sparse_tensor((8, 8), [0, 5], [1, 1], 1)
    with ArtifactWriter(tmp_path / "t.fsw") as writer:
        writer.add_tensor("weight", packed_tensor(sparse, store(sparse), 0.5, "F32"))
        writer.finish(header())
    add_task(module.state_dict(), open_artifact(tmp_path / "t.fsw"), check_base=False)
    assert module.weight.data_ptr() == place
    assert (module.weight.detach() - before).flatten().nonzero().flatten().tolist() == [0, 5]


@pytest.mark.parametrize(
    ("weights", "held"),
    [
        ({}, "none"),
        ({"w": torch.zeros(2, 3)}, "[2, 3], strides (3, 1)"),
        ({"w": torch.zeros(2, 4).T}, "[4, 2], strides (1, 4)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_any_is_changed(
    tmp_path: Path, weights: dict[str, torch.Tensor], held: str
) -> None:
    artifact = artifact_of(tmp_path / "t.fsw", sparse_tensor((4, 2), [1], [1], 1))
    message = (
        f"{tmp_path / 't.fsw'}: tensor 'w' of shape [4, 2] needs a contiguous tensor of that name and shape in "
        f"the model, found {held}"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        add_task(weights, artifact)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.int8, torch.bool], ids=str)
def test_weights_that_are_no_real_numbers_are_refused_before_any_is_changed(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    artifact = artifact_of(tmp_path / "t.fsw", sparse_tensor((4, 2), [1], [1], 1))
    weights = torch.ones(4, 2).to(dtype)
    wanted = f"tensor 'w' is {dtype} in the model, expected a dtype of real numbers"
    with pytest.raises(InputError, match=f"^{re.escape(str(tmp_path / 't.fsw'))}: {re.escape(wanted)}$"):
        add_task({"w": weights}, artifact, check_base=False)
    assert torch.equal(weights, torch.ones(4, 2).to(dtype))
