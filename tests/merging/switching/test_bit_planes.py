"""Deltas packed in bits, as devices hold them, and the kernel that multiplies by them, in Triton's interpreter."""

import importlib
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_language_models import language_model, save_language_base, save_language_model
from support.tiny_models import make_artifact

from flexswitch.codecs.sparse import level_values
from flexswitch.merging.switching import bit_planes, delta_matrix
from flexswitch.merging.switching.bit_planes import BitPlaneMatrix, pack_bit_planes
from flexswitch.merging.switching.switched_model import SwitchedModel

SCALE = 0.3
CPU = torch.device("cpu")
CASES = st.tuples(
    st.integers(1, 8),
    st.booleans(),
    st.sampled_from([0.0, 0.1, 0.7, 1.0]),
    st.tuples(st.integers(1, 90), st.integers(1, 140)),
    st.integers(0, 1000),
)


def packed(case, turned=False):
    """Returns a packed unit, and its delta in float32."""
    bits, has_zero, density, matrix, seed = case
    generator = np.random.default_rng(seed)
    places = np.flatnonzero(generator.random(matrix) < density)
    levels = generator.integers(0, 1 << bits, len(places)).astype(np.uint8)
    zero = int(generator.integers(0, 1 << bits)) if has_zero else None
    dense = np.zeros(matrix, np.float32)
    dense.reshape(-1)[places] = level_values(levels, bits, SCALE, zero)
    found = pack_bit_planes(places, levels, matrix, bits, SCALE, zero, turned, CPU)
    return found, dense.T if turned else dense


def product_case(delta, tokens, dtype, seed=5):
    """Returns inputs, places, factors, shift, a total, and what it becomes, in float64."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, delta.shape[1], generator=generator).to(dtype)
    places = torch.randperm(tokens, generator=generator)[: max(1, tokens // 2)].sort().values
    factors, shift = (
        torch.randn(len(places), generator=generator),
        torch.randn(len(delta), generator=generator),
    )
    total = torch.randn(tokens, len(delta), generator=generator)
    expected = total.double()
    matrix = torch.from_numpy(np.ascontiguousarray(delta)).double()
    expected[places] += factors[:, None].double() * (inputs[places].double() @ matrix.T + shift.double())
    return inputs, places, factors, shift, total, expected


@settings(deadline=None, max_examples=60)
@given(case=CASES, turned=st.booleans())
def test_a_packed_delta_is_given_back_to_the_last_bit(case, turned):
    unit, dense = packed(case, turned)
    assert unit.shape == dense.shape
    assert np.array_equal(unit.dense().numpy(), dense)
    ids = torch.tensor([len(dense) - 1, 0, 0])
    assert np.array_equal(unit.rows(ids).numpy(), dense[ids.numpy()])
    weights = np.ones_like(dense)
    unit.add_to(weights, 2.0)
    assert np.array_equal(weights, 1 + 2 * dense)


def test_it_takes_a_bit_an_entry_and_one_for_each_bit_of_a_level():
    unit, _ = packed((1, False, 0.3, (64, 320), 0))
    assert unit.planes.nbytes == 2 * 64 * 320 / 8
    unit, _ = packed((4, False, 0.3, (64, 320), 0))
    assert unit.planes.nbytes == 5 * 64 * 320 / 8


@settings(deadline=None, max_examples=40)
@given(case=CASES, tokens=st.integers(1, 40), wide=st.booleans())
def test_products_by_decoded_values_are_those_of_float64(case, tokens, wide):
    unit, dense = packed(case)
    dtype = torch.float64 if wide else torch.float32
    inputs, places, factors, shift, total, expected = product_case(dense, tokens, dtype)
    if wide:
        total = total.double()
    unit.add_product(inputs, places, factors.to(total), shift.to(total), total)
    torch.testing.assert_close(total.double(), expected, rtol=1e-4, atol=1e-3)


@pytest.fixture(scope="module")
def kernel():
    """The kernel's module, run by Triton's interpreter on the CPU."""
    pytest.importorskip("triton")
    name = "flexswitch.merging.switching.bit_planes_kernel"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        sys.modules.pop(name, None)
        yield importlib.import_module(name)
    sys.modules.pop(name, None)


@settings(deadline=None, max_examples=40)
@given(case=CASES, tokens=st.integers(1, 70))
def test_the_kernels_products_are_those_of_float64_and_touch_only_their_tokens(kernel, case, tokens):
    unit, dense = packed(case)
    inputs, places, factors, shift, total, expected = product_case(dense, tokens, torch.float32)
    others = np.setdiff1d(np.arange(tokens), places.numpy())
    before = total[others].clone()
    kernel.add_bit_plane_product(unit.planes, unit.step, unit.low, inputs, places, factors, shift, total)
    torch.testing.assert_close(total.double(), expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(total[others], before)


@pytest.mark.parametrize("has_zero", [False, True])
def test_the_kernel_multiplies_narrow_inputs_by_whole_numbers_that_they_hold(kernel, has_zero):
    """The interpreter multiplies no bfloat16, which holds whole numbers to 256, and even ones to 512."""
    unit, dense = packed((8, has_zero, 0.5, (70, 100), 3))
    inputs, places, factors, shift, total, expected = product_case(dense, 50, torch.float16)
    kernel.add_bit_plane_product(unit.planes, unit.step, unit.low, inputs, places, factors, shift, total)
    torch.testing.assert_close(total.double(), expected, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("by_kernel", [False, True])
def test_a_model_of_packed_units_answers_as_one_of_the_cpus_forms(
    kernel, monkeypatch, tmp_path, turned, by_kernel
):
    """The way that a model on a device goes, on the CPU; `turned`: GPT-2, whose layers multiply by (in, out)."""
    kind = "gpt2" if turned else "llama"
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
    seen = []
    monkeypatch.setattr(delta_matrix, "_is_packed", lambda device: True)
    if by_kernel:
        monkeypatch.setattr(bit_planes, "_runs_kernel", lambda *tensors: seen.append(tensors) or True)
    for engine in ("fused", "grouped"):
        found = SwitchedModel(model, zoo, engine=engine)(batch, weights=weights).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert bool(seen) == by_kernel


def test_on_cuda_the_kernel_runs_where_triton_is_and_holds_the_types():
    class Cuda:
        device, dtype = torch.device("cuda"), torch.bfloat16

    class Wide(Cuda):
        dtype = torch.float32

    assert bit_planes._runs_kernel(Cuda, Wide) == (importlib.util.find_spec("triton") is not None)
    assert not bit_planes._runs_kernel(Cuda, Cuda)  # sums are float32
    assert not bit_planes._runs_kernel(torch.zeros(1), torch.zeros(1))
    assert isinstance(packed((1, False, 0.1, (3, 4), 0))[0], BitPlaneMatrix)
