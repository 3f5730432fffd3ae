"""Delta matrices as bit planes, and the kernel that multiplies by them, in Triton's interpreter."""

import importlib
import sys
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import laws
from support.tiny_language_models import language_model, save_language_base, save_language_model
from support.tiny_models import make_artifact

from flexswitch.codecs.sparse import level_values
from flexswitch.merging.switching.batch_plan import batch_plan
from flexswitch.merging.switching.bit_planes import BitPlaneMatrix, pack_bit_planes, runs_kernel
from flexswitch.merging.switching.fused_engine import FusedEngine
from flexswitch.merging.switching.grouped_engine import GroupedEngine
from flexswitch.merging.switching.switched_model import SwitchedModel
from flexswitch.merging.switching.task_deltas import TaskDeltas
from flexswitch.merging.switching.tensor_names import tensor_names
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector

KERNEL = "flexswitch.merging.switching.bit_planes_kernel"
SCALE = 0.3
CPU = torch.device("cpu")
CASES = st.tuples(
    st.integers(1, 8),
    st.booleans(),
    st.sampled_from([0.0, 0.1, 0.7, 1.0]),
    st.tuples(st.integers(1, 90), st.integers(1, 140)),
    st.integers(0, 1000),
)


def packed(case, transposed=False):
    """Returns bit planes, and its delta in float32."""
    bits, has_zero, density, shape, seed = case
    generator = np.random.default_rng(seed)
    positions = np.flatnonzero(generator.random(shape) < density)
    levels = generator.integers(0, 1 << bits, len(positions)).astype(np.uint8)
    zero = int(generator.integers(0, 1 << bits)) if has_zero else None
    dense = np.zeros(shape, np.float32)
    dense.reshape(-1)[positions] = level_values(levels, bits, SCALE, zero)
    found = pack_bit_planes(positions, levels, shape, bits, SCALE, zero, transposed, CPU)
    return found, dense.T if transposed else dense


def product_case(delta, tokens, dtype, seed=5):
    """Returns inputs, positions, factors, bias, a total, and what it becomes, in float64."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, delta.shape[1], generator=generator).to(dtype)
    positions = torch.randperm(tokens, generator=generator)[: max(1, tokens // 2)].sort().values
    factors, bias = (
        torch.randn(len(positions), generator=generator),
        torch.randn(len(delta), generator=generator),
    )
    total = torch.randn(tokens, len(delta), generator=generator)
    expected = total.double()
    weight = torch.from_numpy(np.ascontiguousarray(delta)).double()
    expected[positions] += factors[:, None].double() * (inputs[positions].double() @ weight.T + bias.double())
    return inputs, positions, factors, bias, total, expected


@laws.settings(60, deadline=None)
@given(case=CASES, transposed=st.booleans())
def test_a_packed_delta_is_given_back_to_the_last_bit(case, transposed):
    matrix, dense = packed(case, transposed)
    assert matrix.shape == dense.shape
    assert np.array_equal(matrix.dense().numpy(), dense)
    ids = torch.tensor([len(dense) - 1, 0, 0])
    assert np.array_equal(matrix.rows(ids).numpy(), dense[ids.numpy()])
    weights = np.ones_like(dense)
    matrix.add_to(weights, 2.0)
    assert np.array_equal(weights, 1 + 2 * dense)


def test_an_entry_takes_one_bit_and_one_for_each_bit_of_its_level():
    matrix, _ = packed((1, False, 0.3, (64, 320), 0))
    assert matrix.planes.nbytes == 2 * 64 * 320 / 8
    matrix, _ = packed((4, False, 0.3, (64, 320), 0))
    assert matrix.planes.nbytes == 5 * 64 * 320 / 8


@laws.settings(40, deadline=None)
@given(case=CASES, tokens=st.integers(1, 40), wide=st.booleans())
def test_products_by_decoded_values_are_those_of_float64(case, tokens, wide):
    matrix, dense = packed(case)
    dtype = torch.float64 if wide else torch.float32
    inputs, positions, factors, bias, total, expected = product_case(dense, tokens, dtype)
    if wide:
        total = total.double()
    matrix.add_product(inputs, positions, factors.to(total), bias.to(total), total)
    torch.testing.assert_close(total.double(), expected, rtol=1e-4, atol=1e-3)


@pytest.fixture(scope="module")
def kernel():
    """The kernel's module, run by Triton's interpreter on the CPU."""
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        sys.modules.pop(KERNEL, None)
        yield importlib.import_module(KERNEL)
    sys.modules.pop(KERNEL, None)


@laws.settings(40, deadline=None)
@given(case=CASES, tokens=st.integers(1, 70))
def test_the_kernels_products_are_those_of_float64_and_touch_only_their_tokens(kernel, case, tokens):
    matrix, dense = packed(case)
    inputs, positions, factors, bias, total, expected = product_case(dense, tokens, torch.float32)
    others = np.setdiff1d(np.arange(tokens), positions.numpy())
    before = total[others].clone()
    kernel.add_bit_plane_product(
        matrix.planes, matrix.scale, matrix.offset, inputs, positions, factors, bias, total
    )
    torch.testing.assert_close(total.double(), expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(total[others], before)


@pytest.mark.parametrize("has_zero", [False, True])
def test_the_kernel_multiplies_half_precision_inputs_by_integers_exactly(kernel, has_zero):
    """The interpreter can't multiply bfloat16, which holds integers to 256, and even ones to 512."""
    matrix, dense = packed((8, has_zero, 0.5, (70, 100), 3))
    inputs, positions, factors, bias, total, expected = product_case(dense, 50, torch.float16)
    kernel.add_bit_plane_product(
        matrix.planes, matrix.scale, matrix.offset, inputs, positions, factors, bias, total
    )
    torch.testing.assert_close(total.double(), expected, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_model_with_bit_planes_answers_as_one_with_the_cpus_forms(kernel, tmp_path, transposed):
    """Runs a GPU's code on the CPU; `transposed`: GPT-2, whose layers multiply by (in, out)."""
    kind = "gpt2" if transposed else "llama"
    base = save_language_base(tmp_path / "base", kind)
    model = language_model(kind).from_pretrained(base).eval()
    zoo = {}
    for number, task in enumerate(("one", "two")):
        finetuned = save_language_model(base, tmp_path / task, number)
        zoo[task] = make_artifact(base, finetuned, tmp_path / f"{task}.fsw")
    batch = {"input_ids": torch.randint(5, 20, (6, 7), generator=torch.Generator().manual_seed(0))}
    weights = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.4], [0, 0], [0.3, 0.7], [1, 0]])
    expected = SwitchedModel(model, zoo)(batch, weights=weights).logits
    assert (expected - model(**batch).logits).abs().max() > 0.01
    vectors = [ArtifactVector(artifact) for artifact in zoo.values()]
    names = tensor_names(model, vectors, str, strict=True)
    fused = FusedEngine(model, names, {}, {})
    rms = dict.fromkeys(names, 1.0)
    deltas = TaskDeltas(vectors, rms, fused.transposed, 1 << 30, CPU, bit_planes=True)
    plan = batch_plan(weights.numpy(), deltas, None, None)
    grouped = GroupedEngine(model, names, {}, {}, deltas, 1 << 30)
    for by_kernel in (True, False):
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.delitem(sys.modules, KERNEL)
            patch.setenv("TRITON_INTERPRET", str(int(by_kernel)))
            for answer in (partial(fused.answer, moves=False), grouped.answer):
                found = answer(batch, plan).logits
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            assert (KERNEL in sys.modules) == by_kernel
            sys.modules.pop(KERNEL, None)


def test_on_cuda_the_kernel_runs_where_triton_is_installed_and_supports_the_dtypes(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    class Cuda:
        device, dtype = torch.device("cuda"), torch.bfloat16

    class Wide(Cuda):
        dtype = torch.float32

    assert runs_kernel(Cuda, Wide) == (importlib.util.find_spec("triton") is not None)
    assert not runs_kernel(Cuda, Cuda)  # sums are float32
    assert not runs_kernel(torch.zeros(1), torch.zeros(1))
    assert isinstance(packed((1, False, 0.1, (3, 4), 0))[0], BitPlaneMatrix)
