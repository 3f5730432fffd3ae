"""Streamed linear layers: the numbers of held ones, bit for bit, without holding weights."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from support.checkpoints import memory_pair
from support.places import whole
from support.tiny_language_models import language_model
from support.tiny_models import changed_state
from torch import Tensor, nn

from flexswitch.codecs.threads import parallel_map
from flexswitch.merging.flex_switch.delta_rows import read_delta_rows
from flexswitch.merging.flex_switch.gated_model import GatedModel
from flexswitch.merging.flex_switch.gated_tensor import Gates
from flexswitch.merging.flex_switch.training_step import set_gates
from flexswitch.merging.models.replica import replica
from flexswitch.merging.models.streamed_linear import (
    StreamedLinear,
    UsedDirectlyError,
    stream_linear,
    streamed_layers,
    without_linear_weights,
)


class Perceptron(nn.Module):
    """Two layers, the first of which is used twice; and a head that shares its weights with an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 5)
        self.inner, self.outer = nn.Linear(5, 5), nn.Linear(5, 6, bias=False)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.words(tokens)
        return (
            self.outer(self.inner(self.inner(hidden)).tanh()) @ torch.ones(6, 2) + self.head(hidden)[..., :2]
        )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Makes sums the same in both modules."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def held() -> Perceptron:
    torch.manual_seed(0)
    return Perceptron()


def streamed(like: Perceptron) -> Perceptron:
    with without_linear_weights():
        module = Perceptron()
    stream_linear(module, set(module.state_dict()))
    layers, state = streamed_layers(module), like.state_dict()
    for name, tensor in module.state_dict().items():
        if name not in layers:
            tensor.copy_(state[name])
    for name, layer in layers.items():
        layer.source.read = state[name].clone
    module.words.requires_grad_(True)
    return module


def test_layers_of_shared_weights_are_held() -> None:
    module = streamed(held())
    assert set(streamed_layers(module)) == {"inner.weight", "outer.weight"}
    assert module.head.weight is module.words.weight
    assert not module.words.weight.is_meta


def test_a_language_models_head_is_held_and_layers_not_named_are_too() -> None:
    with without_linear_weights():
        model = language_model("llama")
    names = {name for name in model.state_dict() if "up_proj" not in name}
    stream_linear(model, names)
    layers = streamed_layers(model)
    assert any("down_proj" in name for name in layers)
    assert not any("up_proj" in name or "lm_head" in name for name in layers)
    assert [name for name, weight in model.named_parameters() if weight.is_meta] == sorted(
        layers, key=list(model.state_dict()).index
    )


@pytest.mark.parametrize("fast", [False, True], ids=["float32", "bfloat16"])
def test_outputs_and_gradients_are_those_of_held_layers(fast: bool) -> None:
    tokens = torch.tensor([[1, 2, 3], [4, 0, 6]])
    one, two = held(), streamed(held())
    found: dict[str, Tensor] = {}
    for name, layer in streamed_layers(two).items():
        layer.on_gradient = lambda gradient, name=name: found.__setitem__(
            name, found[name] + gradient if name in found else gradient
        )
    results = []
    for module in (one, two):
        with torch.autocast("cpu", torch.bfloat16) if fast else nullcontext():
            results.append(module(tokens))
        results[-1].float().square().sum().backward()
    assert torch.equal(results[0], results[1])
    assert one.words.weight.grad is not None
    assert two.words.weight.grad is not None
    assert torch.equal(one.words.weight.grad, two.words.weight.grad)
    assert set(found) == {"inner.weight", "outer.weight"}
    for name, gradient in found.items():
        own = one.get_parameter(name).grad
        assert own is not None
        rounding = 0 if name == "outer.weight" else (1e-2 if fast else 1e-6)  # in the sum of the two uses
        torch.testing.assert_close(gradient, own, rtol=0, atol=rounding * float(own.abs().max()))


def test_a_graph_holds_no_weights_and_makes_them_for_the_backward_pass() -> None:
    layer = StreamedLinear(nn.Linear(4, 3), "weight")
    made: list[weakref.ref[Tensor]] = []
    weights = torch.randn(3, 4)

    def read() -> Tensor:
        found = weights.clone()
        made.append(weakref.ref(found))
        return found

    layer.source.read, layer.on_gradient = read, lambda gradient: None
    states = torch.randn(2, 4, requires_grad=True)
    result = layer(states)
    gc.collect()
    assert [each() for each in made] == [None]
    result.sum().backward()
    gc.collect()
    assert [each() for each in made] == [None, None]
    assert states.grad is not None
    torch.testing.assert_close(states.grad, weights.sum(0).expand(2, 4))


def test_the_gates_of_a_layer_used_twice_get_the_gradients_of_both_uses() -> None:
    one, base = held(), {name: weight.clone() for name, weight in held().state_dict().items()}
    two = streamed(held())
    vector = memory_pair(base, changed_state(base, seed=1, size=0.2))
    found = [read_delta_rows(vector, name) for name in ("inner.weight", "outer.weight")]
    tensors = [tensor for tensor in found if tensor is not None]
    places = whole(held(), {tensor.name: tensor.name for tensor in tensors})
    gates = [
        Gates(np.full(len(each.rows), each.rms, np.float32), each.rms, np.array([1]),
              np.array([each.rms], np.float32), np.ones(1, np.float32))
        for each in tensors
    ]  # fmt: skip
    results = []
    for module in (one, two):
        with parallel_map(1) as run:
            gated = GatedModel(module, tensors, places, 1)
            set_gates(gated, gates, run)
            results += gated.backward_all([lambda own: own(torch.tensor([[1, 2, 3]])).square().sum()], run)
    assert results[0][0] == results[1][0]
    for expected, made in zip(results[0][1], results[1][1], strict=True):
        assert expected is not None
        assert made is not None
        for each, other in zip(expected, made, strict=True):
            np.testing.assert_allclose(other, each, rtol=1e-4, atol=1e-5)


def test_copies_read_from_the_same_source_and_hand_their_gradients_to_their_own() -> None:
    module = streamed(held())
    copy = replica(module)
    mine, other = streamed_layers(module)["outer.weight"], streamed_layers(copy)["outer.weight"]
    assert mine is not other
    mine.source.read = lambda: torch.zeros(6, 5)
    assert torch.equal(other.source.read(), torch.zeros(6, 5))
    found: list[Tensor] = []
    other.on_gradient = found.append
    assert mine.on_gradient is None
    copy(torch.tensor([[1]])).sum().backward()
    assert [gradient.shape for gradient in found] == [(6, 5)]


@pytest.mark.parametrize(
    "use",
    [
        lambda weight: weight.t(),
        lambda weight: weight.T,
        lambda weight: weight.data,
        lambda weight: weight.detach() * 2,
        lambda weight: torch.ones(2, 3) @ weight,
        lambda weight: torch.nn.functional.linear(torch.ones(2, 4), weight),
        lambda weight: torch.nn.functional.linear(torch.ones(2, 4), weight=weight),
        lambda weight: torch.cat([weight, weight]),
        lambda weight: torch.cat(tensors=(torch.ones(3, 4), weight)),
    ],
)
def test_a_weight_used_outside_of_its_layer_is_an_error_and_no_noise(use: Callable[[Tensor], Tensor]) -> None:
    layer = StreamedLinear(nn.Linear(4, 3), "inner.weight")
    assert (layer.weight.shape, layer.weight.dtype, layer.weight.dim()) == ((3, 4), torch.float32, 2)
    assert layer.weight.device == torch.device("cpu")
    with pytest.raises(UsedDirectlyError) as caught:
        use(layer.weight)
    assert caught.value.names == ["inner.weight"]


def test_only_new_linear_weights_of_this_thread_are_left_out() -> None:
    made: list[nn.Linear] = []
    with without_linear_weights():
        thread = threading.Thread(target=lambda: made.append(nn.Linear(2, 3)))
        thread.start()
        thread.join()
        module = Perceptron()
    assert not made[0].weight.is_meta
    assert [name for name, weight in module.named_parameters() if weight.is_meta] == [
        "inner.weight",
        "outer.weight",
    ]
    assert not nn.Linear(2, 3).weight.is_meta
