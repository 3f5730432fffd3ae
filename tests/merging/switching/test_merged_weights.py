"""Merged weights: which tasks have them, and what layers compute by them."""

import pytest
import torch
from support.checkpoints import memory_pair
from support.switching import deltas_of, plan_of, tasks_of
from support.tiny_models import changed_state
from torch import nn

from flexswitch.merging.switching.cost_model import Costs
from flexswitch.merging.switching.merged_linear import MergedLayer, merged_output
from flexswitch.merging.switching.merged_weights import MergedWeights
from flexswitch.merging.switching.switched_model import SwitchedModel
from flexswitch.merging.task_vectors.task_vector import delta_tensor

SHAPE = 6, 4
ENTRIES = 24


@pytest.fixture
def base():
    torch.manual_seed(0)
    return {"weight": torch.randn(SHAPE)}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_matrix_is_the_base_and_the_delta_rounded_once(base, dtype, transposed):
    vectors = tasks_of(base, 1)
    own = base["weight"].to(dtype)
    given = own.t().contiguous().t() if transposed else own  # of any strides
    deltas = deltas_of(vectors, {"weight"} if transposed else set())
    matrix = MergedWeights({"weight": given}, deltas, 1 << 20, 0.0).get({0: 1.0})[0]["weight"]
    exact = own.double() + delta_tensor(vectors[0], "weight").double()
    assert matrix.dtype == dtype
    if dtype == torch.bfloat16:
        assert torch.equal(matrix, (own.float() + delta_tensor(vectors[0], "weight")).to(dtype))
    torch.testing.assert_close(matrix.double(), exact, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=0)
    assert torch.equal(own, base["weight"].to(dtype))


def test_a_task_is_merged_once_batches_would_have_saved_its_cost_and_as_many_are_kept_as_fit(base):
    store = MergedWeights(base, deltas_of(tasks_of(base, 4)), 2 * ENTRIES * 4 + 1, cost=10.0)
    assert store.capacity == 2
    assert set(store.get({0: 6.0, 1: 11.0})) == {1}
    assert set(store.get({0: 6.0})) == {0}  # 12 of 10, and 1 was asked for longer ago
    assert set(store.get({2: 6.0})) == set()
    assert set(store.get({2: 6.0})) == {2}  # in place of 1
    assert set(store.get({0: 1.0, 1: 9.0, 2: 1.0})) == {0, 2}  # what 1 had gained before is used up


def test_a_task_of_the_same_batch_is_not_dropped(base):
    store = MergedWeights(base, deltas_of(tasks_of(base, 2)), ENTRIES * 4, cost=1.0)
    assert set(store.get({0: 5.0, 1: 5.0})) == {0}
    assert set(store.get({0: 5.0, 1: 5.0})) == {0}
    assert set(store.get({1: 5.0})) == {1}


def test_nothing_is_kept_where_there_is_no_room(base):
    assert MergedWeights(base, deltas_of(tasks_of(base, 1)), 1, cost=0.0).get({0: float("inf")}) == {}


def test_rows_of_one_task_take_no_product_with_the_base(base):
    vectors = tasks_of(base, 2)
    plan = plan_of([[1, 0], [0, 1], [0.4, 0.6]], vectors)
    plan.use_merged(MergedWeights(base, plan_deltas(plan), 1 << 20, 0.0).get({0: 1.0, 1: 1.0}))

    def original(tokens):
        raise AssertionError("the base's product")

    tokens = torch.randn(3, SHAPE[1])
    found = merged_output(
        plan, list(plan.tasks), MergedLayer("weight", None, original, None, False), tokens, 1
    )
    deltas = [delta_tensor(vector, "weight").double() for vector in vectors]
    for row, shares in enumerate([[1, 0], [0, 1], [0.4, 0.6]]):
        mixed = base["weight"].double() + sum(
            share * delta for share, delta in zip(shares, deltas, strict=True)
        )
        torch.testing.assert_close(found[row].double(), mixed @ tokens[row].double(), rtol=1e-5, atol=1e-5)


def plan_deltas(plan):
    """Returns the deltas of a plan's tasks, by number."""
    return {task.number: task.deltas for task in plan.tasks}


def test_auto_merges_tasks_that_pay_and_answers_as_the_other_engines():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    state = net.state_dict()
    vectors = {f"task{number}": memory_pair(state, changed_state(state, number, 0.3)) for number in range(3)}
    costs = Costs(
        float32_entry=2.0, csr_entry=2.0, merged_task=0.0, new_mixture=1.0, task_calls=0.0, mixture_calls=1e12
    )
    model = SwitchedModel(net, vectors, costs=costs)
    rows = torch.randn(5, 7, 4)
    weights = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0.6, 0.4], [0, 0, 0], [1, 0, 0]])
    found = model(rows, weights=weights)
    assert set(model._loaded.merged._kept) == {0, 1, 2}
    for engine in ("fused", "grouped"):
        expected = SwitchedModel(net, vectors, engine=engine)(rows, weights=weights)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
