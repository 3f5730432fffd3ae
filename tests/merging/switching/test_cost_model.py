"""The cost model: what weights of their own are estimated to save for the mixtures of a batch."""

import numpy as np
import pytest
import torch
from support.switching import deltas_of, plan_of, tasks_of

from flexswitch.merging.switching.batch_plan import batch_plan
from flexswitch.merging.switching.cost_model import CostModel, Costs

SHAPE = 6, 4
ENTRIES = 24
LENGTH = 10  # tokens of a row
COSTS = {
    "csr_entry": 0.5, "float32_entry": 0.5, "held_entry": 1.25, "added_entry": 0.25, "task": 2.0,
    "held_mixture": 6.0,
}  # fmt: skip


@pytest.fixture
def base():
    torch.manual_seed(0)
    return {"weight": torch.randn(SHAPE)}


def gains(base, plan, **costs):
    """Returns the gains of mixtures, which are given by their tasks."""
    cost_model = CostModel(base, Costs(**{"task_calls": 0.0, **COSTS, **costs}))
    found = cost_model.gains(plan, LENGTH).by_mixture
    return {tuple(dict(mixture)): gain for mixture, gain in found.items()}


@pytest.mark.parametrize(
    ("weights", "gained"),
    [
        ([[1, 0], [1, 0], [0, 1]], {(0,): 20 * 0.25 - 4}),  # the base's product and the delta's, not its own
        ([[0.5, 0.5], [0.5, 0.5]], {(0, 1): 20 * 0.75 + 2 * 2 - 6}),
        ([[1, 0], [1, 0], [1, 0], [0.5, 0.5]], {(0,): 30 * 0.25 + 1 - 6, (0, 1): 10 * 0.75 + 1 + 2 - 6}),
        ([[0.3, 0.0], [0, 0.3]], {}),  # 10 * 0.25 are less than 4
        ([[0.0, 0.0]] * 9, {}),  # the base itself
    ],
)
def test_gains_are_estimated_for_each_weight(base, weights, gained):
    assert gains(base, plan_of(weights, tasks_of(base, 2))) == pytest.approx(gained)


@pytest.mark.parametrize(
    ("shares", "pays"),
    [
        ([0.5, 0.5], True),
        ([0.25, 0.25], False),  # and the base's weights, which are one product more
        ([3.0, -2.0], False),  # would be the difference of larger products
    ],
)
def test_a_mixture_may_take_a_product_with_the_weights_of_each_of_its_tasks(base, shares, pays):
    plan = plan_of([[1, 0], [0, 1], shares], tasks_of(base, 2))
    own = Costs(**{**COSTS, "task_calls": 0.0, "float32_entry": 1.4, "csr_entry": 1.4})
    found = CostModel(base, own).gains(plan, LENGTH)
    alone, fused = 10 * 1.25 + 6, (10 * 2.4 + 1, 10 * 3.8 + 2)
    summed = 2 * 10 * 1.5 + 6
    assert found.summed == ({2} if pays else set())
    each = fused[0] - 10 * 1.25 - (3 if pays else 6)
    assert found.by_mixture == pytest.approx(
        {
            ((0, 1.0),): each + pays * (fused[1] - summed) / 2,
            ((1, 1.0),): each + pays * (fused[1] - summed) / 2,
            tuple(enumerate(shares)): (summed if pays else fused[1]) - alone,
        }
    )


def test_what_is_generated_counts_too(base):
    plan = plan_of([[1, 0], [1, 0], [0, 1]], tasks_of(base, 2))
    costs = Costs(**{**COSTS, "task_calls": 0.0, "held_mixture": 1.0})
    found = CostModel(base, costs).gains(plan, LENGTH, steps=7).by_mixture
    reading = 8 * (2 - 1)  # of the deltas and of the weights, in each of eight passes
    assert found == pytest.approx(
        {((0, 1.0),): (20 + 7 * 2) * 0.25 + reading, ((1, 1.0),): (10 + 7) * 0.25 + reading}
    )


def test_padding_saves_nothing(base):
    deltas = deltas_of(tasks_of(base, 1))
    mask = np.arange(LENGTH)[None] < np.array([[LENGTH], [7]])
    plan = batch_plan(np.ones((2, 1), np.float32), deltas, None, mask)
    assert gains(base, plan) == pytest.approx({(0,): 17 * 0.25 - 4})


def test_the_calls_that_a_task_takes_weigh_more_in_a_small_model(base):
    plan = plan_of([[1, 0], [0, 1]], tasks_of(base, 2))
    found = gains(base, plan, task_calls=48.0)
    assert found == pytest.approx({(0,): 10 * 0.25 - 4 + 2, (1,): 10 * 0.25 - 4 + 2})
    assert 48.0 / ENTRIES == 2
