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
COSTS = {"csr_entry": 0.5, "float32_entry": 0.5, "held_entry": 1.25, "task": 2.0, "held_mixture": 6.0}


@pytest.fixture
def base():
    torch.manual_seed(0)
    return {"weight": torch.randn(SHAPE)}


def gains(base, plan, **costs):
    """Returns the gains of mixtures, which are given by their tasks."""
    cost_model = CostModel(base, Costs(**{"task_calls": 0.0, **COSTS, **costs}))
    return {tuple(dict(mixture)): gain for mixture, gain in cost_model.gains(plan, LENGTH).items()}


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
