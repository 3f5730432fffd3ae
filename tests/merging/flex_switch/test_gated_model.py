"""Gradients that reach gates through whole models, against autograd on weights built out of the delta."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from support.checkpoints import memory_pair
from support.places import whole
from support.straight_through import Plain, plain_leaves, plain_weights
from support.tiny_language_models import language_model
from support.tiny_models import bert_config, changed_state
from torch import Tensor, nn
from torch.func import functional_call

from flexswitch.codecs.threads import ParallelMap, parallel_map
from flexswitch.merging.flex_switch.delta_rows import DeltaRows, read_delta_rows
from flexswitch.merging.flex_switch.gated_model import GatedModel
from flexswitch.merging.flex_switch.gated_tensor import (
    GateCounts,
    GatedTensor,
    GateGradients,
    Gates,
    summed,
)
from flexswitch.merging.flex_switch.training_step import set_gates

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


def changed_tensors(model: nn.Module) -> list[DeltaRows]:
    """Returns a fine-tune's deltas: every parameter changed, of the words only a few."""
    base = {name: value.detach().clone() for name, value in model.named_parameters()}
    finetuned = changed_state(base, seed=1, size=0.2)
    for name in base:
        if "word_embeddings" in name:
            finetuned[name][::3] = base[name][::3]
    vector = memory_pair(base, finetuned)
    tensors = [read_delta_rows(vector, name) for name in vector.tensors]
    return [tensor for tensor in tensors if tensor is not None]


def gates_of(tensors: Sequence[DeltaRows], seed: int = 0) -> list[Gates]:
    """Returns gates of all candidates, a threshold a row, in which no value lies where rounding jumps."""
    generator = np.random.default_rng(seed)
    return [
        Gates(
            (tensor.rms * generator.uniform(0.3, 1.5, len(tensor.rows))).astype(np.float32),
            0.3 * tensor.rms,
            BITS,
            (tensor.rms * generator.uniform(0.9, 2, len(BITS))).astype(np.float32),
            generator.dirichlet(np.ones(len(BITS))).astype(np.float32),
        )
        for tensor in tensors
    ]


def expected_gradients(
    model: nn.Module,
    tensors: Sequence[DeltaRows],
    gates: Sequence[Gates],
    loss: Callable[[Tensor], Tensor],
    tokens: Tensor,
) -> tuple[float, list[Plain]]:
    """Returns the loss and what autograd says, in float64, of a model whose weights are built from the delta."""
    model = model.double()
    base = dict(model.named_parameters())
    plain = [plain_leaves(each) for each in gates]
    built = {
        tensor.name: plain_weights(base[tensor.name].detach(), tensor, each, leaves)
        for tensor, each, leaves in zip(tensors, gates, plain, strict=True)
    }
    found = loss(functional_call(model, built, kwargs={"input_ids": tokens}).logits)
    found.backward()
    return float(found.detach()), plain


def check_gradients(
    gradients: Sequence[GateGradients | None], plain: Sequence[Plain], tensors: Sequence[DeltaRows]
) -> None:
    for tensor, found, leaves in zip(tensors, gradients, plain, strict=True):
        assert found is not None, tensor.name
        for one, leaf in zip(found, leaves, strict=True):
            assert leaf.grad is not None
            size = float(leaf.grad.abs().max())
            np.testing.assert_allclose(
                one, leaf.grad.numpy(), rtol=2e-3, atol=2e-3 * size + 1e-4, err_msg=tensor.name
            )


def only_worker() -> AbstractContextManager[ParallelMap]:
    return parallel_map(1)


@pytest.mark.parametrize("make", [bert, gpt2])
def test_gradients_through_a_model_are_those_of_weights_built_from_the_delta(
    make: Callable[[], nn.Module],
) -> None:
    """GPT-2's embedding is its head too: its gradient is the sum of both uses."""
    tensors, tokens = (
        changed_tensors(make()),
        torch.randint(4, 40, (3, 9), generator=torch.Generator().manual_seed(2)),
    )
    gates = gates_of(tensors)

    def loss(found: Tensor) -> Tensor:
        return found.log_softmax(-1)[..., 1].square().mean()

    value, plain = expected_gradients(make(), tensors, gates, loss, tokens)
    gated = GatedModel(make(), tensors, whole(make(), {tensor.name: tensor.name for tensor in tensors}), 1)
    with only_worker() as each:
        kept = set_gates(gated, gates, each)
        ((found, gradients),) = gated.backward_all([lambda model: loss(logits(model, tokens))], each)
    assert found == pytest.approx(value, rel=1e-4)
    assert all(one is not None for one in kept)
    check_gradients(gradients, plain, tensors)


class Watched:
    """Gated weights that note of each gradient whether it was sparse."""

    def __init__(self, weights: GatedTensor, seen: list[bool]) -> None:
        self._weights, self._seen = weights, seen

    def apply(self, gates: Gates) -> GateCounts:
        return self._weights.apply(gates)

    def reduce(self, gates: Gates, gradient: Tensor) -> GateGradients:
        self._seen.append(gradient.is_sparse)
        return self._weights.reduce(gates, gradient)


def embedding_gradients(
    model: nn.Module, tensors: Sequence[DeltaRows], tokens: Tensor
) -> tuple[list[bool], list[GateGradients]]:
    """Returns of two steps whether each gradient was sparse, and the gradients by the gates."""
    gated = GatedModel(model, tensors, whole(model, {tensor.name: tensor.name for tensor in tensors}), 1)
    seen: list[bool] = []
    gated.weights = [None if weights is None else Watched(weights, seen) for weights in gated.weights]
    found = []
    with only_worker() as each:
        for seed in range(2):
            set_gates(gated, gates_of(tensors, seed), each)
            ((_, gradients),) = gated.backward_all(
                [lambda model: logits(model, tokens).square().mean()], each
            )
            found += [each for each in gradients if each is not None]
    return seen, found


def with_shared_words() -> nn.Module:
    """Returns the model with its table of words under a second name, so that its gradient is dense."""
    model = bert()
    model.register_parameter("words", model.get_parameter("bert.embeddings.word_embeddings.weight"))
    return model


def test_the_sparse_gradient_of_an_embedding_table_equals_the_dense_one() -> None:
    tensors = [tensor for tensor in changed_tensors(bert()) if "word_embeddings" in tensor.name]
    tokens = torch.tensor([[4, 9, 9, 5, 4, 33], [12, 4, 7, 9, 10, 6]])
    touched = set(tokens.flatten().tolist())
    changed = set(tensors[0].rows.tolist())
    assert touched - changed
    assert touched & changed
    sparse, found = embedding_gradients(bert(), tensors, tokens)
    assert sparse == [True, True]
    sparse, expected = embedding_gradients(with_shared_words(), tensors, tokens)
    assert sparse == [False, False]
    for one, two in zip(found, expected, strict=True):
        for part, wanted in zip(one, two, strict=True):
            assert np.abs(wanted).max() > 0
            np.testing.assert_allclose(part, wanted, rtol=1e-5, atol=1e-7 * np.abs(wanted).max())
    untouched = [place for place, row in enumerate(tensors[0].rows.tolist()) if row not in touched]
    assert (found[0].by_threshold[untouched] == 0).all()


def test_a_table_that_a_head_shares_has_a_dense_gradient_and_the_given_model_stays_as_it_is() -> None:
    tensors = [tensor for tensor in changed_tensors(gpt2()) if "wte" in tensor.name or "wpe" in tensor.name]
    model = gpt2()
    sparse, _ = embedding_gradients(model, tensors, torch.arange(4, 13)[None])
    assert sorted(sparse) == [False, False, True, True]  # of tokens, of positions
    assert not any(each.sparse for each in model.modules() if isinstance(each, nn.Embedding))


def test_a_tied_tensors_gradient_differs_from_that_of_one_use_alone() -> None:
    tensors, tokens = (
        [tensor for tensor in changed_tensors(gpt2()) if "wte" in tensor.name],
        torch.arange(4, 13)[None],
    )
    gates, found = gates_of(tensors), []
    for tied in (True, False):
        model = gpt2()
        if not tied:
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        gated = GatedModel(model, tensors, whole(model, {tensors[0].name: tensors[0].name}), 1)
        with only_worker() as each:
            set_gates(gated, gates, each)
            ((_, (gradients,)),) = gated.backward_all(
                [lambda model: logits(model, tokens).square().mean()], each
            )
        assert gradients is not None
        found.append(gradients.by_scale)
    assert np.abs(found[0] - found[1]).max() > 0.1 * np.abs(found[0]).max()


@pytest.mark.parametrize("threads", [1, 3])
def test_the_sum_over_shards_is_the_whole_batchs(threads: int) -> None:
    tensors, tokens = (
        changed_tensors(bert()),
        torch.randint(4, 40, (6, 9), generator=torch.Generator().manual_seed(2)),
    )
    gates, names = gates_of(tensors), {tensor.name: tensor.name for tensor in tensors}

    def part(rows: slice) -> Run:
        return lambda model: logits(model, tokens[rows]).square().sum()

    with parallel_map(threads) as each:
        places = whole(bert(), names)
        uncut, cut = GatedModel(bert(), tensors, places, 1), GatedModel(bert(), tensors, places, 3)
        for gated in (uncut, cut):
            set_gates(gated, gates, each)
        ((value, one),) = uncut.backward_all([part(slice(None))], each)
        shards = cut.backward_all([part(slice(0, 1)), part(slice(1, 4)), part(slice(4, 6))], each)
    assert sum(value for value, _ in shards) == pytest.approx(value, rel=1e-5)
    largest = max(
        float(np.abs(part).max()) for gradients in one if gradients is not None for part in gradients
    )
    for number, expected in enumerate(one):
        total = summed([gradients[number] for _, gradients in shards])
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


def odd_model() -> tuple[GatedModel, list[DeltaRows], list[Gates]]:
    base = {
        "weight": torch.ones(2, 3),
        "idle": torch.ones(3),
        "mean": torch.zeros(3),
        "other": torch.zeros(4),
    }
    vector = memory_pair(base, {name: value + 1 for name, value in base.items()})
    tensors = [
        tensor
        for name in ("weight", "idle", "mean", "other")
        if (tensor := read_delta_rows(vector, name)) is not None
    ]
    one = np.ones(1, np.float32)
    gates = [
        Gates(np.full(len(tensor.rows), 0.5, np.float32), 0.3, np.array([1]), one, one) for tensor in tensors
    ]
    return (
        GatedModel(Odd(), tensors, whole(Odd(), {name: name for name in ("weight", "idle", "mean")}), 2),
        tensors,
        gates,
    )


def test_a_tensor_that_the_model_lacks_or_that_no_loss_depends_on_has_no_gradient() -> None:
    gated, _, gates = odd_model()
    with only_worker() as each:
        kept = set_gates(gated, gates, each)
        losses = [lambda model: model(torch.ones(1, 3)).sum()] * 2
        found = gated.backward_all(losses, each)
    assert [each is None for each in kept] == [False, False, False, True]
    for _, gradients in found:
        assert [each is None for each in gradients] == [False, True, True, True]
    assert summed([gradients[1] for _, gradients in found]) is None
    assert summed([gradients[3] for _, gradients in found]) is None


def test_a_buffers_weights_pass_their_gates_too_though_it_has_no_gradient() -> None:
    gated, _, gates = odd_model()
    with only_worker() as each:
        set_gates(gated, gates, each)
        ((value, _), _) = gated.backward_all([lambda model: model(torch.zeros(1, 3)).sum()] * 2, each)
    assert gated.model.mean.tolist() == [1, 1, 1]
    assert value == -2 * 3 * 2  # two rows of weights of 2, inputs less by 1


def test_replicas_share_the_models_weights_and_leave_no_gradient_behind() -> None:
    gated, _, gates = odd_model()
    seen: list[nn.Module] = []

    def loss(model: nn.Module) -> Tensor:
        seen.append(model)
        found: Tensor = model(torch.ones(1, 3)).sum()
        return found

    with only_worker() as each:
        for _ in range(2):
            set_gates(gated, gates, each)
            gated.backward_all([loss, loss], each)
    own = {tensor.data_ptr() for tensor in gated.model.parameters()}
    assert seen[0] is not seen[1]
    for model in (gated.model, *seen):
        assert {tensor.data_ptr() for tensor in model.parameters()} == own
        assert all(tensor.grad is None for tensor in model.parameters())
