"""The cost model: which engine is estimated to be the cheapest, and what merged weights save."""

import numpy as np
import pytest
import torch
from support.switching import base_classifier, deltas_of, plan_of, tasks_of

from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.switching.batch_plan import batch_plan
from flexswitch.merging.switching.cost_model import CostModel, Costs
from flexswitch.merging.switching.fused_engine import FusedEngine
from flexswitch.merging.switching.tensor_names import tensor_names
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector

SHAPE = 6, 4
LENGTH = 10  # tokens of a row


@pytest.fixture
def base():
    torch.manual_seed(0)
    return {"weight": torch.randn(SHAPE)}


def cost_model_of(base, **costs):
    return CostModel(
        base, held=8, merged=8, costs=Costs(**{"task_calls": 0.0, "mixture_calls": 1e12, **costs})
    )


@pytest.mark.parametrize(
    ("weights", "gained"),
    [
        ([[1, 0], [1, 0], [0, 1]], {0: 20 * 0.5 - 4, 1: 10 * 0.5 - 4}),  # the base's product, not their own
        ([[1, 0], [1, 0], [0.5, 0.5], [0, 1]], {0: 25 - 30 * 0.5 - 4, 1: 15 - 20 * 0.5 - 4}),
        ([[0.5, 0.5], [0.5, 0.5]], {}),  # two products in place of the base's and two cheap ones
        ([[0.3, 0], [0, 0.3]], {}),  # the base's product is needed all the same
    ],
)
def test_savings_are_estimated_for_each_weight(base, weights, gained):
    plan = plan_of(weights, tasks_of(base, 2))
    found = cost_model_of(
        base, csr_entry=0.5, float32_entry=0.5, merged_entry=1.0, task=2.0, merged_task=6.0
    ).choose(plan, LENGTH)
    assert found.fused
    assert found.merged == pytest.approx(gained)


def test_small_shares_of_a_batch_are_not_merged(base):
    plan = plan_of([[1, 0], [0, 1]], tasks_of(base, 2))
    assert cost_model_of(base, float32_entry=0.5, merged_task=20.0).choose(plan, LENGTH).merged == {}


def test_few_large_groups_are_answered_by_held_weights_and_many_small_ones_by_one_pass(text):
    module, vectors = base_classifier(text), [ArtifactVector(task) for task in open_zoo(text.zoo).values()]
    names = tensor_names(module, vectors, str, strict=True)
    matrices, deltas = FusedEngine(module, names, {}, {}).matrices, deltas_of(vectors)
    costs = Costs(new_mixture=150.0, mixture=20.0, task_calls=0.0, mixture_calls=0.0)
    cost_model = CostModel(matrices, 8, 0, costs)

    def prefers_fused(weights, mask=None):
        return cost_model.choose(batch_plan(weights.numpy(), deltas, None, mask), tokens=30).fused

    one_each = torch.eye(3)[torch.arange(30) % 3]
    assert prefers_fused(one_each)  # their weights would have to be made first
    assert not prefers_fused(one_each)
    assert prefers_fused(one_each, mask=np.arange(30)[None] < np.ones((30, 1)))  # padding is not computed
    assert prefers_fused(torch.rand(6, 3, generator=torch.Generator().manual_seed(0)))
