"""The compiled passes over gated weights, and torch's, against docs/methods.md §4, in float64 under autograd."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.sparse_tensors import LAWS
from support.straight_through import Floats, away_from_edges, delta_rows, plain_leaves, plain_weights
from torch import Tensor

from flexswitch.codecs.blocks import as_matrix
from flexswitch.merging.flex_switch.delta_rows import DeltaRows, Quantisation, levels_of, sparse_tensor
from flexswitch.merging.flex_switch.gated_tensor import DeviceGatedTensor, GatedTensor, Gates, gated_weights

SHAPES = [(1,), (7,), (1030,), (1, 1), (5, 1), (9, 8), (6, 13), (3, 1024), (2, 1025), (2, 2051), (4, 3, 5)]
CANDIDATES = [[1], [4], [1, 2, 4, 8], [2, 3], [1, 8], [3, 5, 6, 7]]


class CompressionTask(NamedTuple):
    tensor: DeltaRows
    gates: Gates
    base: Tensor
    gradient: Tensor


def task(
    shape: tuple[int, ...], bits: list[int], seed: int, by_rows: bool, left_out: float, zeros: float = 0.0
) -> CompressionTask:
    """Returns a random one, some rows and a share of entries without change; none lies where rounding jumps."""
    generator = np.random.default_rng(seed)
    scales = generator.uniform(0.3, 2.5, len(bits)).astype(np.float32)
    grid = as_matrix(shape)
    delta = generator.normal(size=(grid.rows, grid.columns)).astype(np.float32)
    delta = away_from_edges(delta, bits, scales.tolist())
    delta[generator.random(grid.rows) < left_out] = 0
    delta[generator.random(delta.shape) < zeros] = 0
    delta[generator.integers(grid.rows), 0] = 1.625 * scales.max()
    tensor = delta_rows(delta.reshape(shape))
    thresholds = generator.uniform(0.1, 2, len(tensor.rows) if by_rows else 1)
    shares = generator.dirichlet(np.ones(len(bits)))
    gates = Gates(
        np.broadcast_to(thresholds.astype(np.float32), len(tensor.rows)).copy(),
        float(np.float32(generator.uniform(0.02, 0.6))),
        np.array(bits),
        scales,
        shares.astype(np.float32),
    )
    base, gradient = (torch.from_numpy(generator.normal(size=shape).astype(np.float32)) for _ in range(2))
    return CompressionTask(tensor, gates, base, gradient)


PROBLEMS = st.builds(
    task,
    shape=st.sampled_from(SHAPES),
    bits=st.sampled_from(CANDIDATES),
    seed=st.integers(0, 999),
    by_rows=st.booleans(),
    left_out=st.sampled_from([0.0, 0.5]),
    zeros=st.sampled_from([0.0, 0.3]),
)


def rows_of(tensor: DeltaRows, whole: Tensor) -> Tensor:
    return whole.reshape(-1, tensor.columns)[torch.from_numpy(tensor.rows)]


def delta_of(tensor: DeltaRows) -> Floats:
    return tensor.delta.reshape(-1, tensor.columns)


@LAWS
@given(given_one=PROBLEMS)
def test_weights_are_the_base_and_the_mixture_of_what_passes_its_gate(given_one: CompressionTask) -> None:
    tensor, gates, base, _ = given_one
    weights = base.clone()
    kept = gated_weights(tensor, weights).apply(gates)
    passes = np.abs(delta_of(tensor)) > gates.thresholds[:, None]
    assert kept.kept.tolist() == passes.sum(1).tolist()
    expected = plain_weights(base, tensor, gates, plain_leaves(gates)).detach()
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=3e-6)
    passing = np.zeros(as_matrix(tensor.shape).rows * tensor.columns, np.bool_).reshape(-1, tensor.columns)
    passing[tensor.rows] = passes
    closed = torch.from_numpy(~passing).reshape(base.shape)
    assert torch.equal(weights[closed], base[closed])


@LAWS
@given(given_one=PROBLEMS)
def test_slopes_are_those_of_the_number_that_pass_when_gates_are_soft(given_one: CompressionTask) -> None:
    tensor, gates, base, _ = given_one
    kept = gated_weights(tensor, base.clone()).apply(gates)
    thresholds = plain_leaves(gates).thresholds
    magnitudes = torch.from_numpy(delta_of(tensor)).double().abs()
    soft = torch.sigmoid((magnitudes - thresholds[:, None]) / gates.width)
    soft[magnitudes != 0].sum().backward()
    assert thresholds.grad is not None
    np.testing.assert_allclose(kept.slopes, -thresholds.grad.numpy(), rtol=1e-4, atol=2e-6 * tensor.columns)


@LAWS
@given(given_one=PROBLEMS)
def test_derivatives_are_those_of_straight_through_gates_and_rounding(given_one: CompressionTask) -> None:
    tensor, gates, base, gradient = given_one
    plain = plain_leaves(gates)
    (plain_weights(base, tensor, gates, plain) * gradient.double()).sum().backward()
    found = gated_weights(tensor, base.clone())
    found.apply(gates)
    gradients = found.reduce(gates, gradient)
    size = float(rows_of(tensor, gradient).abs().sum()) * float(gates.scales.max())
    for one, leaf in zip(gradients, plain, strict=True):
        assert leaf.grad is not None
        np.testing.assert_allclose(one, leaf.grad.numpy(), rtol=2e-4, atol=2e-6 * size / gates.width)


@LAWS
@given(given_one=PROBLEMS)
def test_torch_operations_of_another_device_agree_with_the_compiled_passes(
    given_one: CompressionTask,
) -> None:
    tensor, gates, base, gradient = given_one
    one, two = base.clone(), base.clone()
    compiled, other = gated_weights(tensor, one), DeviceGatedTensor(tensor, two)
    assert type(compiled) is not DeviceGatedTensor
    kept, kept_too = compiled.apply(gates), other.apply(gates)
    assert kept.kept.tolist() == kept_too.kept.tolist()
    cut_off = 2e-7 * tensor.columns / gates.width  # the compiled slope is 0 where it would be below 2e-7
    np.testing.assert_allclose(kept.slopes, kept_too.slopes, rtol=1e-5, atol=cut_off)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    size = float(rows_of(tensor, gradient).abs().sum()) * float(gates.scales.max())
    for found, expected in zip(compiled.reduce(gates, gradient), other.reduce(gates, gradient), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * size / gates.width)


def test_the_gates_slope_is_the_sigmoids_within_1e_5_of_itself() -> None:
    # One entry a row, so small that its distance from the threshold is the threshold.
    places = np.concatenate([np.linspace(0, 15, 4001), np.geomspace(1e-6, 15, 500)]).astype(np.float32)
    places = places[places < 15]
    tensor = delta_rows(np.full((len(places), 1), 2.0**-60, np.float32))
    one = np.ones(1, np.float32)
    found = gated_weights(tensor, torch.zeros(len(places), 1)).apply(
        Gates(places, 1.0, np.array([1]), one, one)
    )
    e = np.exp(-places.astype(np.float64))
    np.testing.assert_allclose(found.slopes, e / (1 + e) ** 2, rtol=1e-5)


def test_far_from_its_threshold_an_entry_has_no_slope_and_nothing_overflows() -> None:
    tensor = delta_rows(np.array([[1e30], [-1e30], [1e-30]], np.float32))
    one = np.ones(1, np.float32)
    gates = Gates(np.array([1, 1, 1e30], np.float32), 1e-3, np.array([1]), one, one)
    weights = torch.zeros(3, 1)
    found = gated_weights(tensor, weights)
    assert (found.apply(gates).slopes == 0).all()
    assert weights.flatten().tolist() == [1, -1, 0]
    assert (found.reduce(gates, torch.ones(3, 1)).by_threshold == 0).all()


@pytest.mark.parametrize("kind", [gated_weights, DeviceGatedTensor])
@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.05, 0.2])
def test_an_entry_that_did_not_change_has_no_slope_however_near_the_threshold(
    kind: Callable[[DeltaRows, Tensor], GatedTensor], threshold: float
) -> None:
    delta = np.array([[0, 0.25, 0, -0.125], [0.5, 0, -0.0, 0], [0, 0, 0, 0]], np.float32)
    tensor, base = delta_rows(delta), torch.arange(12.0).reshape(3, 4)
    gates = Gates(
        np.full(2, threshold, np.float32),
        0.1,
        np.array([1]),
        np.full(1, 0.75, np.float32),
        np.ones(1, np.float32),
    )
    weights, changed = base.clone(), torch.from_numpy(delta) != 0
    found = kind(tensor, weights)
    kept = found.apply(gates)
    passes = np.abs(delta[:2].astype(np.float64)) > gates.thresholds[:, None]
    assert kept.kept.tolist() == passes.sum(1).tolist()
    assert torch.equal(weights[~changed], base[~changed])
    distances = (np.abs(delta[:2].astype(np.float64)) - gates.thresholds[:, None]) / gates.width
    kernel = np.where(delta[:2] != 0, 1 / (2 + np.exp(distances) + np.exp(-distances)) / gates.width, 0)
    np.testing.assert_allclose(kept.slopes, kernel.sum(1), rtol=1e-5)
    gradient = torch.linspace(-1, 2, 12).reshape(3, 4)
    gradients = found.reduce(gates, gradient)
    expected = -(gradient[:2].numpy() * 0.75 * np.sign(delta[:2]) * kernel).sum(1)
    np.testing.assert_allclose(gradients.by_threshold, expected, rtol=1e-5)
    elsewhere = found.reduce(gates, torch.where(changed, gradient, 1e6))
    for one, two in zip(gradients, elsewhere, strict=True):
        assert one.tolist() == two.tolist()


@LAWS
@given(given_one=PROBLEMS, touched=st.lists(st.integers(0, 99), max_size=12), seed=st.integers(0, 99))
def test_a_sparse_gradient_says_what_the_dense_one_says(
    given_one: CompressionTask, touched: list[int], seed: int
) -> None:
    """Rows in any order, some twice, some of them rows that did not change."""
    tensor, gates, base, _ = given_one
    grid = as_matrix(tensor.shape)
    rows = torch.tensor([row % grid.rows for row in touched], dtype=torch.int64)
    values = torch.randn(len(rows), grid.columns, generator=torch.Generator().manual_seed(seed))
    sparse = torch.sparse_coo_tensor(rows[None], values, (grid.rows, grid.columns), check_invariants=True)
    dense = sparse.to_dense()
    size = float(dense.abs().sum()) * float(gates.scales.max()) / gates.width
    for kind in (gated_weights, DeviceGatedTensor):
        found = kind(tensor, base.clone().reshape(grid.rows, grid.columns))
        expected = found.reduce(gates, dense)
        for one, two in zip(found.reduce(gates, sparse), expected, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-7 * size)


def test_gates_are_applied_to_the_base_each_time_anew() -> None:
    tensor, gates, base, _ = task((9, 8), [1, 2, 4, 8], 3, True, 0.5)
    weights, fresh = base.clone(), base.clone()
    found = gated_weights(tensor, weights)
    for factor in (0.1, 0.5, 1):
        found.apply(gates._replace(thresholds=gates.thresholds * np.float32(factor)))
    gated_weights(tensor, fresh).apply(gates)
    assert torch.equal(weights, fresh)
    found.apply(gates._replace(thresholds=np.full_like(gates.thresholds, np.inf)))
    assert torch.equal(weights, base)


def test_an_entry_at_its_threshold_does_not_pass() -> None:
    tensor, one = delta_rows(np.array([0.5, -0.5, 0.75], np.float32)), np.ones(1, np.float32)
    weights = torch.zeros(3)
    kept = gated_weights(tensor, weights).apply(Gates(one / 2, 0.1, np.array([1]), one, one))
    assert kept.kept.tolist() == [1]
    assert weights.tolist() == [0, 0, 1]


def test_a_gradient_may_lie_in_memory_in_any_order() -> None:
    tensor, gates, base, gradient = task((9, 8), [1, 4], 5, True, 0.0)
    found = gated_weights(tensor, base.clone())
    turned = gradient.t().contiguous().t()
    assert not turned.is_contiguous()
    for one, two in zip(found.reduce(gates, gradient), found.reduce(gates, turned), strict=True):
        assert one.tolist() == two.tolist()


@LAWS
@given(given_one=PROBLEMS, candidate=st.integers(0, 7))
def test_what_is_stored_decodes_to_what_the_model_was_given(
    given_one: CompressionTask, candidate: int
) -> None:
    tensor, gates, base, _ = given_one
    candidate %= len(gates.bits)
    scale = float(gates.scales[candidate])
    quantised = Quantisation(gates.thresholds, int(gates.bits[candidate]), scale)
    chosen = gates._replace(
        bits=gates.bits[[candidate]], scales=gates.scales[[candidate]], shares=np.ones(1, np.float32)
    )
    weights = base.clone()
    kept = gated_weights(tensor, weights).apply(chosen)
    sparse = sparse_tensor(tensor, quantised)
    (decoded,) = sparse.dense_blocks(scale)
    assert len(sparse.levels) == kept.kept.sum()
    np.testing.assert_allclose(
        weights.numpy().reshape(-1), base.numpy().reshape(-1) + decoded, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_are_the_nearest_and_stop_at_the_ends(bits: int) -> None:
    values = np.linspace(-3, 3, 601).astype(np.float32)
    values = values[values != 0]
    places = np.array([2 * level + 1 - 2**bits for level in range(2**bits)]) / (2**bits - 1)
    found = levels_of(values, Quantisation(np.zeros(1, np.float32), bits, 1.25))
    chosen = np.abs(values - 1.25 * places[found])
    nearest = np.abs(values[:, None] - 1.25 * places).min(1)
    np.testing.assert_allclose(chosen, nearest, atol=1e-6)
