"""The trained parameters: thresholds, shares, what they harden to, and Adam, against torch in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.sparse_tensors import LAWS
from support.straight_through import delta_rows

from flexswitch.merging.flex_switch import parameters as module
from flexswitch.merging.flex_switch.artifact_size import kept_by_row
from flexswitch.merging.flex_switch.delta_rows import DeltaRows, Quantisation
from flexswitch.merging.flex_switch.initialisation import initial_parameters
from flexswitch.merging.flex_switch.parameters import Adam, Parameters, clip_free, inverse_softplus
from flexswitch.merging.flex_switch.rate_distortion import rate_distortion_table

BITS = np.array([1, 2, 4, 8])


def two_tensors() -> list[DeltaRows]:
    generator = np.random.default_rng(0)
    first = generator.normal(size=(5, 40)).astype(np.float32)
    first[2] = 0
    return [
        delta_rows(first, "first"),
        delta_rows(3 * generator.normal(size=30).astype(np.float32), "second"),
    ]


def random_parameters(tensors: list[DeltaRows], by_rows: bool, seed: int) -> Parameters:
    generator = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum([len(tensor.rows) for tensor in tensors])])
    tables = [generator.normal(size=(len(tensors), len(BITS))) for _ in range(2)]
    rows = generator.normal(size=int(starts[-1]) if by_rows else 0)
    return Parameters(BITS, starts, generator.normal(size=len(tensors)), rows, *tables)


def test_a_tensor_holds_the_rows_that_changed_and_their_root_mean_square() -> None:
    tensor = two_tensors()[0]
    assert (tensor.rows.tolist(), tensor.columns, tensor.entries) == ([0, 1, 3, 4], 40, 160)
    assert tensor.rms == pytest.approx(
        float(np.sqrt((tensor.delta.astype(np.float64) ** 2).mean())), rel=1e-12
    )


@LAWS
@given(by_rows=st.booleans(), seed=st.integers(0, 99))
def test_thresholds_are_softplus_of_free_numbers_and_so_are_their_derivatives(
    by_rows: bool, seed: int
) -> None:
    tensors = two_tensors()
    parameters = random_parameters(tensors, by_rows, seed)
    for number, tensor in enumerate(tensors):
        free = torch.tensor(parameters.free[number]).requires_grad_()
        own = parameters.rows[parameters.starts[number] : parameters.starts[number + 1]]
        assert len(own) == (len(tensor.rows) if by_rows else 0)
        rows = torch.from_numpy(own.copy() if by_rows else np.zeros(len(tensor.rows))).requires_grad_()
        thresholds = torch.nn.functional.softplus(free + rows) * tensor.rms
        given_slopes = np.random.default_rng(seed + 1).normal(size=len(tensor.rows))
        (thresholds * torch.from_numpy(given_slopes)).sum().backward()
        np.testing.assert_allclose(parameters.thresholds(tensor, number), thresholds.detach(), rtol=1e-6)
        by_row = parameters.by_free(tensor, number, given_slopes)
        np.testing.assert_allclose(by_row, rows.grad, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(by_row.sum(), free.grad, rtol=1e-9, atol=1e-12)


@LAWS
@given(temperature=st.floats(1e-3, 10), seed=st.integers(0, 99))
def test_shares_are_the_softmax_and_the_largest_logit_is_what_is_kept(temperature: float, seed: int) -> None:
    tensors = two_tensors()
    parameters = random_parameters(tensors, True, seed)
    quantised = parameters.quantised(tensors)
    for number, tensor in enumerate(tensors):
        expected = (torch.from_numpy(parameters.logits[number]) / temperature).softmax(0)
        np.testing.assert_allclose(parameters.shares(number, temperature), expected, rtol=1e-9, atol=1e-300)
        chosen = int(parameters.logits[number].argmax())
        assert quantised[number].bits == BITS[chosen]
        assert quantised[number].scale == np.float32(np.exp(parameters.log_scales[number, chosen]))
        assert quantised[number].thresholds.tolist() == parameters.thresholds(tensor, number).tolist()


@pytest.mark.parametrize("threshold", [1e-3, 0.1, 1.0, 5.0, 40.0])
def test_a_free_number_is_the_one_whose_softplus_is_the_threshold(threshold: float) -> None:
    assert np.logaddexp(0, inverse_softplus(threshold)) == pytest.approx(threshold, rel=1e-9)


def test_free_numbers_are_kept_where_they_can_move() -> None:
    free = np.array([-1e9, 0.5, 1e9])
    clip_free(free)
    assert free[1] == 0.5
    gradients = 1 / (1 + np.exp(-free))
    assert (gradients > 1e-9).all()
    assert np.isfinite(free).all()


def test_adam_moves_as_torchs_does() -> None:
    generator = np.random.default_rng(0)
    arrays = {"one": generator.normal(size=5), "two": generator.normal(size=(2, 3))}
    leaves = {name: torch.from_numpy(array.copy()).requires_grad_() for name, array in arrays.items()}
    rates = {"one": 0.05, "two": 0.2}
    groups = [{"params": [leaf], "lr": rates[name]} for name, leaf in leaves.items()]
    expected, adam = torch.optim.Adam(groups, betas=module._BETAS, eps=1e-30), Adam()
    for _ in range(20):
        gradients = {name: generator.normal(size=array.shape) for name, array in arrays.items()}
        for name, leaf in leaves.items():
            leaf.grad = torch.from_numpy(gradients[name].copy())
        expected.step()
        adam.update(arrays, gradients, rates)
    for name, leaf in leaves.items():
        np.testing.assert_allclose(arrays[name], leaf.detach(), rtol=1e-9)


def test_adam_shares_the_mean_square_of_a_group() -> None:
    generator = np.random.default_rng(0)
    first, second = module._BETAS
    starts = np.array([0, 3, 4])
    arrays = {"rows": generator.normal(size=4), "free": generator.normal(size=4)}
    expected, adam = {name: array.copy() for name, array in arrays.items()}, Adam(groups={"rows": starts})
    means, squares = {name: np.zeros(4) for name in arrays}, {name: np.zeros(4) for name in arrays}
    for step in range(1, 11):
        gradients = {name: generator.normal(size=4) for name in arrays}
        adam.update(arrays, gradients, {"rows": 0.1, "free": 0.3})
        for name, rate in (("rows", 0.1), ("free", 0.3)):
            found = gradients[name] ** 2
            if name == "rows":
                found[:3] = (gradients[name][:3] @ gradients[name][:3]) / 3
            means[name] = first * means[name] + (1 - first) * gradients[name]
            squares[name] = second * squares[name] + (1 - second) * found
            ahead, spread = means[name] / (1 - first**step), np.sqrt(squares[name] / (1 - second**step))
            expected[name] -= rate * ahead / spread
    for name, array in arrays.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-9)


def test_what_is_small_beside_the_others_of_its_group_moves_little() -> None:
    gradients = {"rows": np.array([1.0, 1e-3, 1e-3])}
    alone, grouped = {"rows": np.zeros(3)}, {"rows": np.zeros(3)}
    Adam().update(alone, gradients, {"rows": 0.1})
    Adam(groups={"rows": np.array([0, 2, 3])}).update(grouped, gradients, {"rows": 0.1})
    assert alone["rows"] == pytest.approx([-0.1, -0.1, -0.1])
    assert grouped["rows"] == pytest.approx([-0.1 * 2**0.5, -1e-4 * 2**0.5, -0.1], rel=1e-4)


def test_a_group_of_an_array_that_is_empty_changes_nothing() -> None:
    arrays, adam = {"rows": np.empty(0)}, Adam(groups={"rows": np.array([0, 4, 5])})
    adam.update(arrays, {"rows": np.empty(0)}, {"rows": 0.1})
    assert len(arrays["rows"]) == 0


def test_adam_leaves_what_never_had_a_slope() -> None:
    arrays, adam = {"one": np.ones(3)}, Adam()
    for _ in range(3):
        adam.update(arrays, {"one": np.zeros(3)}, {"one": 0.1})
    assert arrays["one"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("by_rows", [True, False])
def test_learning_starts_from_what_the_allocation_keeps(by_rows: bool) -> None:
    tensors = two_tensors()
    tables = [rate_distortion_table(tensor.delta, BITS) for tensor in tensors]
    kept = []
    for tensor, each, bits in zip(tensors, tables, (4, 1), strict=True):
        row = int(np.flatnonzero((each.bits == bits) & (each.kept >= 10))[0])
        thresholds = np.full(len(tensor.rows), each.thresholds[row])
        kept.append(Quantisation(thresholds, bits, float(np.float32(each.scales[row]))))
    parameters = initial_parameters(tensors, tables, kept, BITS, by_rows)
    assert len(parameters.free) == 2
    assert parameters.rows.tolist() == ([0] * 5 if by_rows else [])
    assert parameters.starts.tolist() == [0, 4, 5]
    for tensor, found, expected in zip(tensors, parameters.quantised(tensors), kept, strict=True):
        assert found.bits == expected.bits
        assert found.scale == pytest.approx(expected.scale, rel=1e-5)
        assert kept_by_row(tensor, found).tolist() == kept_by_row(tensor, expected).tolist()


def test_a_tensor_that_the_allocation_drops_starts_with_an_entry() -> None:
    tensors = two_tensors()
    tables = [rate_distortion_table(tensor.delta, BITS) for tensor in tensors]
    kept = [Quantisation(np.full(len(tensor.rows), np.inf, np.float32), 1, tensor.rms) for tensor in tensors]
    quantised = initial_parameters(tensors, tables, kept, BITS, by_rows=False).quantised(tensors)
    assert [
        int(kept_by_row(tensor, each).sum()) for tensor, each in zip(tensors, quantised, strict=True)
    ] == [1, 1]
