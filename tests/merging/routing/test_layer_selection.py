"""`--features auto`: the earliest layers that route about as well as the best."""

import numpy as np
import pytest
import torch
from support.checkpoints import message

from flexswitch.codecs.errors import UsageError
from flexswitch.merging.models.feature_spec import FeatureSpec, layers_spec, parse_feature_spec
from flexswitch.merging.routing.layer_selection import candidates, select_layers

TASKS, PER_TASK, WIDTH = 3, 20, 8


def states_of(*strengths):
    """Returns states whose layer n separates the tasks by strengths[n], and the task ids."""
    generator = np.random.Generator(np.random.PCG64(0))
    ids = np.repeat(np.arange(TASKS, dtype=np.int32), PER_TASK)
    states = generator.normal(size=(len(ids), len(strengths), WIDTH))
    states[:, :, :TASKS] += np.eye(TASKS)[ids][:, None] * np.array(strengths)[:, None]
    return torch.from_numpy(states.astype(np.float32)), ids


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize(
    ("strengths", "expected"),
    [
        ((0, 0, 20, 0), (2,)),
        ((20, 0, 0, 0), (0,)),
        ((0, 20, 20, 20), (1,)),
        ((0, 0, 0, 20), (3,)),
    ],
)
def test_the_earliest_of_equally_good_layers_is_selected(strengths, expected, rank):
    states, ids = states_of(*strengths)
    layers, shares = select_layers(states, states[:, :0], ids, "standardised", rank)
    assert layers[-1] == expected[-1]
    assert shares[layers] >= max(shares.values()) - 1
    assert list(shares) == candidates(3)
    assert min(shares.values()) < 90


def test_two_layers_are_selected_if_both_are_needed():
    states, ids = states_of(0, 0, 0)
    states[:, 0, 0] += 30 * torch.from_numpy(ids == 1)
    states[:, 2, 0] += 30 * torch.from_numpy(ids == 2)
    layers, shares = select_layers(states, states[:, :0], ids, "standardised", 4)
    assert layers == (0, 2)
    assert shares[0, 2] == 100
    assert max(shares[0,], shares[2,], shares[0, 1]) < 90


def test_layers_are_selected_together_with_the_features_beside_them():
    states, ids = states_of(0, 0, 0)
    states[:, 0, 0] += 30 * torch.from_numpy(ids == 1)
    states[:, 2, 0] += 30 * torch.from_numpy(ids == 2)
    beside = states[:, :1].clone()
    layers, shares = select_layers(states, beside, ids, "standardised", 4)
    assert layers == (2,)
    assert shares[2,] == 100
    assert max(shares[0,], shares[1,], shares[0, 1]) < 90


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("pooled", FeatureSpec((), False)),
        ("input", FeatureSpec((0,), False)),
        ("layer:12", FeatureSpec((12,), False)),
        ("layers:4+0+4", FeatureSpec((4, 0, 4), False)),
        ("average:pooled", FeatureSpec((), True)),
        ("average:layers:0+3", FeatureSpec((0, 3), True)),
        ("shape+pooled", FeatureSpec((), False, True)),
        ("shape+layers:0+3", FeatureSpec((0, 3), False, True)),
        ("shape+average:input", FeatureSpec((0,), True, True)),
    ],
)
def test_feature_specs_are_parsed(name, spec):
    assert parse_feature_spec(name) == spec
    if spec.layers and not spec.averaged:
        assert parse_feature_spec(layers_spec(spec.layers, spec.shaped)) == spec


@pytest.mark.parametrize(
    "name", ["layer:" + "9" * 5000, "", "layer", "layer:", "layers:", "layers:3", "layer:1+2", "layers:1+", "layer:-1", "average:", "auto", "average:average:pooled", "layer:1.5", "shape+", "shape", "shape+shape+input", "average:shape+input", "shape+auto"]
)  # fmt: skip
def test_unknown_feature_specs_are_refused(name):
    assert message(UsageError, lambda: parse_feature_spec(name)).startswith(
        f"--features: no feature spec is named '{name}'"
    )
