"""Gradients that reach gates through whole models, against autograd on weights built out of the delta."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from support.checkpoints import memory_pair
from support.straight_through import Plain, plain_leaves, plain_weights
from support.tiny_language_models import language_model
from support.tiny_models import bert_config, changed_state
from torch import Tensor, nn
from torch.func import functional_call

from flexswitch.codecs.threads import ParallelMap, parallel_map
from flexswitch.merging.flex_switch import gated_model as student_module
from flexswitch.merging.flex_switch.delta_rows import DeltaRows, read_delta_rows
from flexswitch.merging.flex_switch.gated_model import GatedModel
from flexswitch.merging.flex_switch.gated_tensor import GateGradients, Gates
from flexswitch.merging.flex_switch.training_step import set_gates, summed

BITS = np.array([1, 2, 4])
Run = Callable[[nn.Module, Tensor], Tensor]


def bert() -> nn.Module:
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(bert_config(num_labels=3)).eval()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = language_model("gpt2").eval()
    assert model.lm_head.weight is model.transformer.wte.weight
    return model


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    found: Tensor = model(input_ids=tokens).logits
    return found


def units_of(model: nn.Module) -> list[DeltaRows]:
    """Returns a fine-tune's units: every parameter changed, of the words only a few."""
    base = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    finetuned = changed_state(base, seed=1, size=0.2)
    for name in base:
        if "word_embeddings" in name:
            finetuned[name][::3] = base[name][::3]
    vector = memory_pair(base, finetuned)
    units = [read_delta_rows(vector, name) for name in vector.tensors]
    return [unit for unit in units if unit is not None]


def gates_of(units: Sequence[DeltaRows], seed: int = 0) -> list[Gates]:
    """Returns gates of all candidates, a threshold a row, in which no value lies where rounding jumps."""
    generator = np.random.default_rng(seed)
    return [
        Gates(
            (unit.rms * generator.uniform(0.3, 1.5, len(unit.rows))).astype(np.float32),
            0.3 * unit.rms,
            BITS,
            (unit.rms * generator.uniform(0.9, 2, len(BITS))).astype(np.float32),
            generator.dirichlet(np.ones(len(BITS))).astype(np.float32),
        )
        for unit in units
    ]


def expected_slopes(
    model: nn.Module,
    units: Sequence[DeltaRows],
    gates: Sequence[Gates],
    loss: Callable[[Tensor], Tensor],
    tokens: Tensor,
) -> tuple[float, list[Plain]]:
    """Returns the loss and what autograd says, in float64, of a model whose weights are built from the delta."""
    model = model.double()
    base = dict(model.named_parameters())
    plain = [plain_leaves(each) for each in gates]
    built = {
        unit.name: plain_weights(base[unit.name].detach(), unit, each, leaves)
        for unit, each, leaves in zip(units, gates, plain, strict=True)
    }
    found = loss(functional_call(model, built, kwargs={"input_ids": tokens}).logits)
    found.backward()
    return float(found.detach()), plain


def check_slopes(
    slopes: Sequence[GateGradients | None], plain: Sequence[Plain], units: Sequence[DeltaRows]
) -> None:
    for unit, found, leaves in zip(units, slopes, plain, strict=True):
        assert found is not None, unit.name
        for one, leaf in zip(found, leaves, strict=True):
            assert leaf.grad is not None
            size = float(leaf.grad.abs().max())
            np.testing.assert_allclose(
                one, leaf.grad.numpy(), rtol=2e-3, atol=2e-3 * size + 1e-4, err_msg=unit.name
            )


def only_worker() -> AbstractContextManager[ParallelMap]:
    return parallel_map(1)


@pytest.mark.parametrize("make", [bert, gpt2])
def test_gradients_through_a_model_are_those_of_weights_built_from_the_delta(
    make: Callable[[], nn.Module],
) -> None:
    """GPT-2's embedding is its head too: its gradient is the sum of both uses."""
    units, tokens = units_of(make()), torch.randint(4, 40, (3, 9), generator=torch.Generator().manual_seed(2))
    gates = gates_of(units)

    def loss(found: Tensor) -> Tensor:
        return found.log_softmax(-1)[..., 1].square().mean()

    value, plain = expected_slopes(make(), units, gates, loss, tokens)
    student = GatedModel(make(), units, {unit.name: unit.name for unit in units}, 1)
    with only_worker() as each:
        kept = set_gates(student, gates, each)
        ((found, slopes),) = student.backward_all([lambda model: loss(logits(model, tokens))], each)
    assert found == pytest.approx(value, rel=1e-4)
    assert all(one is not None for one in kept)
    check_slopes(slopes, plain, units)


def embedding_slopes(
    model: nn.Module, units: Sequence[DeltaRows], tokens: Tensor
) -> tuple[list[bool], list[GateGradients]]:
    """Returns of two steps whether each gradient was sparse, and the slopes."""
    student = GatedModel(model, units, {unit.name: unit.name for unit in units}, 1)
    seen: list[bool] = []
    for weights in student.weights:
        assert weights is not None
        weights.reduce = watched(weights.reduce, seen)  # type: ignore[method-assign]
    found = []
    with only_worker() as each:
        for seed in range(2):
            set_gates(student, gates_of(units, seed), each)
            ((_, slopes),) = student.backward_all([lambda model: logits(model, tokens).square().mean()], each)
            found += [each for each in slopes if each is not None]
    return seen, found


def watched(
    reduce: Callable[[Gates, Tensor], GateGradients], seen: list[bool]
) -> Callable[[Gates, Tensor], GateGradients]:
    def reduced(gates: Gates, gradient: Tensor) -> GateGradients:
        seen.append(gradient.is_sparse)
        return reduce(gates, gradient)

    return reduced


def test_a_table_of_embeddings_has_a_sparse_gradient_that_says_what_a_dense_one_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    units = [unit for unit in units_of(bert()) if "word_embeddings" in unit.name]
    tokens = torch.tensor([[4, 9, 9, 5, 4, 33], [12, 4, 7, 9, 10, 6]])
    touched = set(tokens.flatten().tolist())
    changed = set(units[0].rows.tolist())
    assert touched - changed
    assert touched & changed
    sparse, found = embedding_slopes(bert(), units, tokens)
    assert sparse == [True, True]
    monkeypatch.setattr(student_module, "_make_embeddings_sparse", lambda model: None)
    sparse, expected = embedding_slopes(bert(), units, tokens)
    assert sparse == [False, False]
    for one, two in zip(found, expected, strict=True):
        for part, wanted in zip(one, two, strict=True):
            assert np.abs(wanted).max() > 0
            np.testing.assert_allclose(part, wanted, rtol=1e-5, atol=1e-7 * np.abs(wanted).max())
    untouched = [place for place, row in enumerate(units[0].rows.tolist()) if row not in touched]
    assert (found[0].by_threshold[untouched] == 0).all()


def test_a_table_that_a_head_shares_has_a_dense_gradient_and_the_given_model_stays_as_it_is() -> None:
    units = [unit for unit in units_of(gpt2()) if "wte" in unit.name or "wpe" in unit.name]
    model = gpt2()
    sparse, _ = embedding_slopes(model, units, torch.arange(4, 13)[None])
    assert sorted(sparse) == [False, False, True, True]  # of tokens, of positions
    assert not any(each.sparse for each in model.modules() if isinstance(each, nn.Embedding))


def test_a_tied_tensors_gradient_differs_from_that_of_one_use_alone() -> None:
    units, tokens = [unit for unit in units_of(gpt2()) if "wte" in unit.name], torch.arange(4, 13)[None]
    gates, found = gates_of(units), []
    for tied in (True, False):
        model = gpt2()
        if not tied:
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        student = GatedModel(model, units, {units[0].name: units[0].name}, 1)
        with only_worker() as each:
            set_gates(student, gates, each)
            ((_, (slopes,)),) = student.backward_all(
                [lambda model: logits(model, tokens).square().mean()], each
            )
        assert slopes is not None
        found.append(slopes.by_scale)
    assert np.abs(found[0] - found[1]).max() > 0.1 * np.abs(found[0]).max()


@pytest.mark.parametrize("threads", [1, 3])
def test_the_sum_over_shards_is_the_whole_batchs(threads: int) -> None:
    units, tokens = units_of(bert()), torch.randint(4, 40, (6, 9), generator=torch.Generator().manual_seed(2))
    gates, names = gates_of(units), {unit.name: unit.name for unit in units}

    def part(rows: slice) -> Run:
        return lambda model: logits(model, tokens[rows]).square().sum()

    with parallel_map(threads) as each:
        whole, cut = GatedModel(bert(), units, names, 1), GatedModel(bert(), units, names, 3)
        for student in (whole, cut):
            set_gates(student, gates, each)
        ((value, one),) = whole.backward_all([part(slice(None))], each)
        shards = cut.backward_all([part(slice(0, 1)), part(slice(1, 4)), part(slice(4, 6))], each)
    assert sum(value for value, _ in shards) == pytest.approx(value, rel=1e-5)
    largest = max(float(np.abs(part).max()) for slopes in one if slopes is not None for part in slopes)
    for number, expected in enumerate(one):
        total = summed([slopes[number] for _, slopes in shards])
        assert expected is not None
        assert total is not None
        for found, wanted in zip(total, expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6 * largest)


class Odd(nn.Module):
    """A model with a buffer that has a delta, and a parameter that no loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.idle = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs - self.mean) @ self.weight.t()


def odd_student() -> tuple[GatedModel, list[DeltaRows], list[Gates]]:
    base = {
        "weight": torch.ones(2, 3),
        "idle": torch.ones(3),
        "mean": torch.zeros(3),
        "other": torch.zeros(4),
    }
    vector = memory_pair(base, {name: tensor + 1 for name, tensor in base.items()})
    units = [
        unit
        for name in ("weight", "idle", "mean", "other")
        if (unit := read_delta_rows(vector, name)) is not None
    ]
    one = np.ones(1, np.float32)
    gates = [Gates(np.full(len(unit.rows), 0.5, np.float32), 0.3, np.array([1]), one, one) for unit in units]
    return GatedModel(Odd(), units, {name: name for name in ("weight", "idle", "mean")}, 2), units, gates


def test_a_unit_that_the_model_lacks_or_that_no_loss_depends_on_has_no_gradient() -> None:
    student, _, gates = odd_student()
    with only_worker() as each:
        kept = set_gates(student, gates, each)
        losses = [lambda model: model(torch.ones(1, 3)).sum()] * 2
        found = student.backward_all(losses, each)
    assert [each is None for each in kept] == [False, False, False, True]
    for _, slopes in found:
        assert [each is None for each in slopes] == [False, True, True, True]
    assert summed([slopes[1] for _, slopes in found]) is None
    assert summed([slopes[3] for _, slopes in found]) is None


def test_a_buffers_weights_pass_their_gates_too_though_it_has_no_gradient() -> None:
    student, _, gates = odd_student()
    with only_worker() as each:
        set_gates(student, gates, each)
        ((value, _), _) = student.backward_all([lambda model: model(torch.zeros(1, 3)).sum()] * 2, each)
    assert student.model.mean.tolist() == [1, 1, 1]
    assert value == -2 * 3 * 2  # two rows of weights of 2, inputs less by 1


def test_replicas_share_the_models_weights_and_leave_no_gradient_behind() -> None:
    student, _, gates = odd_student()
    seen: list[nn.Module] = []

    def loss(model: nn.Module) -> Tensor:
        seen.append(model)
        found: Tensor = model(torch.ones(1, 3)).sum()
        return found

    with only_worker() as each:
        for _ in range(2):
            set_gates(student, gates, each)
            student.backward_all([loss, loss], each)
    own = {tensor.data_ptr() for tensor in student.model.parameters()}
    assert seen[0] is not seen[1]
    for model in (student.model, *seen):
        assert {tensor.data_ptr() for tensor in model.parameters()} == own
        assert all(tensor.grad is None for tensor in model.parameters())
