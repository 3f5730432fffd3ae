"""Mixtures of tasks against arithmetic on state dicts, however little of them is kept in memory."""

from types import SimpleNamespace

import pytest
import torch
from checkpoints import compressed, file_pair, memory_pair, use_small_blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import changed_state, tiny_state

from flexswitch.merging.switching.mixture import Mixture
from flexswitch.merging.task_vector import ArtifactVector, delta_tensor, restore

BASE = tiny_state()
UNITS = sorted(BASE)
FINETUNED = [changed_state(BASE, seed) for seed in range(1, 5)]
DELTA_BYTES = 4 * sum(tensor.numel() for tensor in BASE.values())
SHARES = st.one_of(st.just(0.0), st.just(1.0), st.floats(-2, 2))


def vectors():
    return [memory_pair(BASE, finetuned) for finetuned in FINETUNED]


def assert_mixed(found, shares, lambda_=1.0, finetuned=FINETUNED):
    assert list(found) == UNITS
    for name, tensor in found.items():
        expected = BASE[name].double()
        for share, state in zip(shares, finetuned, strict=True):
            expected = expected + lambda_ * share * (state[name].double() - BASE[name].double())
        assert (tensor.dtype, tensor.shape) == (torch.float32, BASE[name].shape)
        torch.testing.assert_close(tensor, expected.float(), rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(shares=st.lists(SHARES, min_size=4, max_size=4), lambda_=st.floats(-2, 2))
def test_weights_are_the_base_plus_the_weighted_task_vectors(shares, lambda_):
    mixture = Mixture(BASE, vectors(), lambda_)
    assert mixture.units == UNITS
    assert_mixed(mixture.weights(shares), shares, lambda_)


def test_shares_of_zero_give_the_base_to_the_last_bit():
    found = Mixture(BASE, vectors()).weights([0.0] * 4)
    assert all(torch.equal(found[name], BASE[name]) for name in UNITS)


def test_mixtures_share_no_memory_with_each_other_or_the_base():
    mixture = Mixture(BASE, vectors())
    one, two = mixture.weights([1, 0, 0, 0]), mixture.weights([1, 0, 0, 0])
    for tensor in one.values():
        tensor.zero_()
    assert_mixed(two, [1, 0, 0, 0])
    assert_mixed(mixture.weights([0, 1, 0, 0]), [0, 1, 0, 0])


@pytest.mark.parametrize("kept", [0, 1, 2, 3, 4, 100])
def test_a_small_cache_changes_no_result_and_is_not_exceeded(kept):
    roomy, tight = Mixture(BASE, vectors()), Mixture(BASE, vectors(), cache_bytes=kept * DELTA_BYTES)
    for shares in ([1, 0, 0, 0], [0.25] * 4, [0, 0, 0, 1], [0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.25] * 4):
        one, two = roomy.weights(shares), tight.weights(shares)
        assert all(torch.equal(one[name], two[name]) for name in UNITS)
        held = sum(delta.numel() * 4 for delta in tight._deltas.values())
        assert held <= max(kept, 1) * DELTA_BYTES


class Counted:
    """A task vector that counts how often it is decoded."""

    def __init__(self, vector):
        self.units = vector.units
        self.vector = vector
        self.decoded = 0

    def blocks(self, unit):
        self.decoded += unit == UNITS[0]
        return self.vector.blocks(unit)


def test_each_task_is_decoded_once_where_all_fit_and_the_least_used_goes_first():
    counted = [Counted(vector) for vector in vectors()]
    mixture = Mixture(BASE, counted)
    for _ in range(3):
        mixture.weights([0.25] * 4)
    assert [each.decoded for each in counted] == [1, 1, 1, 1]
    counted = [Counted(vector) for vector in vectors()]
    mixture = Mixture(BASE, counted, cache_bytes=2 * DELTA_BYTES)
    for task in (0, 1, 0, 2, 0, 1):  # 2 takes the place of 1
        mixture.weights([float(task == other) for other in range(4)])
    assert [each.decoded for each in counted] == [1, 2, 1, 0]


def test_a_task_of_share_zero_is_not_decoded():
    counted = [Counted(vector) for vector in vectors()]
    Mixture(BASE, counted).weights([0, 0.5, 0, 0.5])
    assert [each.decoded for each in counted] == [0, 1, 0, 1]


def test_tensors_that_one_task_alone_changes_are_the_bases_in_the_others():
    some = {name: BASE[name] for name in UNITS[:2]}
    partial = changed_state(some, 9) | {UNITS[2]: BASE[UNITS[2]]}
    left_out = memory_pair(BASE, changed_state(BASE, 1), include=(UNITS[0],))
    mixture = Mixture(BASE, [left_out, memory_pair(BASE, partial)])
    first = changed_state(BASE, 1)
    assert_mixed(mixture.weights([1, 2]), [1, 2], finetuned=[BASE | {UNITS[0]: first[UNITS[0]]}, partial])


def test_only_tensors_that_a_task_changes_are_returned():
    mixture = Mixture(BASE, [memory_pair(BASE, changed_state(BASE, 1), include=("layer.*",))])
    assert list(mixture.weights([1.0])) == ["layer.bias", "layer.weight"]
    nothing = SimpleNamespace(units={})
    assert Mixture(BASE, [nothing]).weights([1.0]) == {}


def test_deltas_that_come_in_many_blocks_are_put_together(tmp_path, monkeypatch):
    use_small_blocks(monkeypatch)
    assert len(list(vectors()[0].blocks("table.weight"))) > 1
    assert_mixed(Mixture(BASE, vectors()).weights([0.5, 0, 0, 2]), [0.5, 0, 0, 2])
    vector = ArtifactVector(compressed(file_pair(tmp_path, BASE, FINETUNED[0]), tmp_path / "task.fsw"))
    found = Mixture(BASE, [vector]).weights([1.0])
    for name in UNITS:
        assert torch.equal(found[name], BASE[name] + delta_tensor(vector, name))


def test_one_tasks_mixture_is_the_restored_model(tmp_path):
    artifact = compressed(file_pair(tmp_path, BASE, FINETUNED[0]), tmp_path / "task.fsw")
    found = Mixture(BASE, [ArtifactVector(artifact)], lambda_=0.7).weights([1.0])
    restored = restore(str(tmp_path / "base.safetensors"), artifact, lambda_=0.7)
    for name in UNITS:
        torch.testing.assert_close(found[name], restored[name], rtol=1e-6, atol=1e-7)


def test_a_half_precision_base_is_mixed_in_float32():
    half = {name: tensor.bfloat16() for name, tensor in BASE.items()}
    finetuned = {name: tensor.bfloat16() for name, tensor in FINETUNED[0].items()}
    found = Mixture(half, [memory_pair(half, finetuned)]).weights([0.5])
    for name in UNITS:
        expected = (half[name].float() + finetuned[name].float()) / 2
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6)
