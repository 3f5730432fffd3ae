"""Held weights: which mixtures have weights of their own, and what layers compute by them."""

import pytest
import torch
from support.checkpoints import memory_pair
from support.switching import deltas_of, plan_of, tasks_of
from support.tiny_models import changed_state
from torch import nn

from flexswitch.merging.switching import held_weights
from flexswitch.merging.switching.cost_model import Costs
from flexswitch.merging.switching.held_products import LinearLayer, held_products
from flexswitch.merging.switching.held_weights import HeldWeights
from flexswitch.merging.switching.switched_model import SwitchedModel
from flexswitch.merging.task_vectors.task_vector import delta_tensor

SHAPE = 6, 4
ENTRIES = 24
ALONE = [((number, 1.0),) for number in range(4)]  # the mixtures of one task


@pytest.fixture
def base():
    torch.manual_seed(0)
    return {"weight": torch.randn(SHAPE)}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_matrix_is_the_base_and_the_deltas_rounded_once(base, dtype, transposed):
    vectors = tasks_of(base, 2)
    own = base["weight"].to(dtype)
    given = own.t().contiguous().t() if transposed else own  # of any strides
    deltas = deltas_of(vectors, {"weight"} if transposed else set())
    mixture = (0, 1.0), (1, -0.5)
    matrix = HeldWeights({"weight": given}, deltas, 1 << 20, 0.0).get({mixture: 1.0})[mixture]["weight"]
    added = sum(factor * delta_tensor(vectors[task], "weight").double() for task, factor in mixture)
    assert matrix.dtype == dtype
    if dtype == torch.bfloat16:
        assert torch.equal(matrix, (own.float() + added.float()).to(dtype))
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(matrix.double(), own.double() + added, rtol=tolerance, atol=1e-6)
    assert torch.equal(own, base["weight"].to(dtype))


def test_a_small_model_s_weights_are_made_in_one_piece_and_are_those_made_tensor_by_tensor(monkeypatch):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Linear(5, 6), nn.LayerNorm(6))
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    changed = changed_state(state, 0, 0.3)
    vectors = [memory_pair(state, changed), memory_pair(state, {**state, "1.weight": changed["1.weight"]})]
    mixture = (0, 0.5), (1, -0.25)
    assert held_weights.is_small(state)
    store = HeldWeights(state, deltas_of(vectors, {"1.weight"}), 1 << 20, 0.0, {"1.weight"})
    found = store.made(mixture)
    assert found["1.weight"].t().is_contiguous()
    assert store.nbytes == 2 * sum(tensor.nbytes for tensor in state.values())  # the deltas of two tasks
    monkeypatch.setattr(held_weights, "_SMALL_BYTES", 0)
    expected = HeldWeights(state, deltas_of(vectors, {"1.weight"}), 1 << 20, 0.0).made(mixture)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


def test_a_mixture_is_held_once_batches_would_have_saved_its_cost_and_as_many_are_kept_as_fit(base):
    store = HeldWeights(base, deltas_of(tasks_of(base, 4)), 2 * ENTRIES * 4 + 1, cost=10.0)
    zero, one, two, _ = ALONE
    assert store.capacity == 2
    assert set(store.get({zero: 6.0, one: 11.0})) == {one}
    assert set(store.get({zero: 6.0})) == {zero}  # 12 of 10, and 1 was asked for longer ago
    assert set(store.get({two: 6.0})) == set()
    assert set(store.get({two: 6.0})) == {two}  # in place of 1
    assert set(store.get({zero: 1.0, one: 9.0, two: 1.0})) == {zero, two}  # what 1 had gained is used up
    assert set(store.get({one: 2.0})) == {one}


def test_a_mixture_of_the_same_batch_is_not_dropped(base):
    store = HeldWeights(base, deltas_of(tasks_of(base, 2)), ENTRIES * 4, cost=1.0)
    zero, one = ALONE[:2]
    assert set(store.get({zero: 5.0, one: 5.0})) == {zero}
    assert set(store.get({zero: 5.0, one: 5.0})) == {zero}
    assert set(store.get({one: 5.0})) == {one}


def test_nothing_is_held_where_there_is_no_room(base):
    store = HeldWeights(base, deltas_of(tasks_of(base, 1)), 1, cost=0.0)
    assert store.get({ALONE[0]: float("inf")}) == {}


def test_gains_of_mixtures_that_never_come_again_are_forgotten(base, monkeypatch):
    monkeypatch.setattr(held_weights, "_REMEMBERED", 3)
    store = HeldWeights(base, deltas_of(tasks_of(base, 1)), 1 << 20, cost=10.0)
    for number in range(20):
        assert store.get({((0, 0.01 * (1 + number)),): 6.0}) == {}
    assert len(store._gains) == 3
    assert set(store.get({((0, 0.2),): 6.0})) == {((0, 0.2),)}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("summed", [[], [(2, 5, 6, 7), [[0.5, 0.5], [0.25, 0.25], [1.5, -0.5]]]])
@pytest.mark.parametrize("held", [[((0, 1.0),)], [((0, 1.0),), ((1, 1.0),)], [((0, 0.5), (1, 0.5))], []])
def test_tokens_take_products_with_the_weights_of_their_mixture(base, transposed, has_bias, held, summed):
    base["bias"] = torch.randn(SHAPE[0])
    vectors = tasks_of(base, 2)
    shares = [[1, 0], [0, 1], [0.5, 0.5], [1, 0], [0, 0], [0.25, 0.25], [1.5, -0.5], [3, -2]]
    plan = plan_of(shares, vectors)
    store = HeldWeights(base, deltas_of(vectors), 1 << 20, 0.0)
    numbers = [plan.mixture_of[row] for row in summed[0]] if summed else []
    plan.hold(store.get(dict.fromkeys(held, float("inf"))), numbers)
    linear = nn.Linear(SHAPE[1], SHAPE[0], bias=has_bias).requires_grad_(False)
    linear.load_state_dict({name: base[name] for name in linear.state_dict()})
    names = "weight", "bias" if has_bias else None
    layer = LinearLayer((linear.weight, linear.bias), names, False)
    if transposed:
        linear.weight = nn.Parameter(linear.weight.t().contiguous(), requires_grad=False)
        own = {key: {**weights, "weight": weights["weight"].t()} for key, weights in store._held.items()}
        plan.hold(own, numbers)
        layer = LinearLayer((linear.weight, linear.bias), names, True)
    if len(held) == 2 and summed:  # all that a sum of products needs
        held = held + [tuple(enumerate(own)) for own in summed[1]]
    tokens = torch.randn(16, SHAPE[1])  # two a row
    found = held_products(plan, layer, tokens, 2)
    for token in range(16):
        mixture = tuple((task, share) for task, share in enumerate(shares[token // 2]) if share)
        expected = {
            name: base[name].double()
            + sum(
                share * delta_tensor(vectors[task], name).double()
                for task, share in mixture
                if mixture in held
            )
            for name in base
        }
        wanted = expected["weight"] @ tokens[token].double() + (expected["bias"] if has_bias else 0)
        torch.testing.assert_close(found[token].double(), wanted, rtol=1e-5, atol=1e-5)
    rows = sorted(row for task in plan.others for row in task.rows.tolist())
    assert rows == sorted(
        row
        for row, own in enumerate(shares)
        for share in own
        if share and tuple((task, share) for task, share in enumerate(own) if share) not in held
    )


@pytest.mark.parametrize(
    ("small", "each", "new", "held"),
    [
        pytest.param(True, 10.0, 15.0, [{0}, {1, 2}], id="in a small model a mixture's own weights"),
        pytest.param(False, 10.0, 12.0, [{0}, {1}, {1, 2}], id="a mixture's own weights"),
        pytest.param(False, 0.1, 10.5, [{0}, {1}, {2}], id="those of each of its tasks"),
    ],
)
def test_auto_holds_mixtures_that_pay_and_answers_as_the_other_engines(small, each, new, held, monkeypatch):
    monkeypatch.setattr(held_weights, "_SMALL_BYTES", 1 << 20 if small else 0)
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)).eval()
    state = net.state_dict()
    vectors = {f"task{number}": memory_pair(state, changed_state(state, number, 0.3)) for number in range(3)}
    costs = Costs(
        csr_entry=2.0, float32_entry=2.0, added_entry=0.0, held_mixture=each, task_calls=0.0,
        new_mixture=new, new_small_mixture=new,
    )  # fmt: skip
    model = SwitchedModel(net, vectors, costs=costs)
    rows = torch.randn(5, 7, 4)
    weights = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0.6, 0.4], [0, 0, 0], [1, 0, 0]])
    found = model(rows, weights=weights)
    assert [set(dict(key)) for key in model._loaded.held._held] == held
    for engine in ("fused", "grouped", "merged"):
        expected = SwitchedModel(net, vectors, engine=engine)(rows, weights=weights)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(rows, weights=weights), found, rtol=1e-5, atol=1e-6)
