"""Tensors that store the real tokens alone: what operations return for them, and when they are padded."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from flexswitch.merging.switching.padding import Padding
from flexswitch.merging.switching.unpadded_tensor import UnpaddedTensor, padded, real_tokens

MARKS = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0]], bool)
ROWS, LENGTH = MARKS.shape
WIDTH = 3


def real(tensor):
    """Returns the tokens of a whole tensor that are no padding."""
    return tensor.reshape(ROWS * LENGTH, *tensor.shape[2:])[torch.from_numpy(MARKS.reshape(-1))]


@pytest.fixture
def padding():
    return Padding(MARKS)


def pair(padding, seed=0, width=WIDTH):
    """Returns a whole tensor, zero in its padding, and the unpadded one of it."""
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(ROWS, LENGTH, width, generator=generator) * torch.from_numpy(MARKS)[:, :, None]
    return tensor, UnpaddedTensor(real(tensor).clone(), padding)


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))


OTHERS = {
    "number": 2.0,
    "scalar": torch.tensor(3.0),
    "entries": random(WIDTH),
    "one entry": random(1),
    "positions": random(LENGTH, WIDTH),
    "one token": random(1, WIDTH),
    "batch of one": random(1, LENGTH, WIDTH),
    "one of all": random(1, 1, WIDTH),
    "rows": random(ROWS, 1, WIDTH),
    "tokens": random(ROWS, LENGTH, 1),
    "all": random(ROWS, LENGTH, WIDTH),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("is_left", [False, True], ids=["before", "after"])
def test_a_pointwise_operation_with_a_tensor_of_any_shape_runs_on_the_real_tokens(padding, other, is_left):
    tensor, unpadded = pair(padding)
    found = other - unpadded if is_left else unpadded - other
    expected = other - tensor if is_left else tensor - other
    assert torch.equal(real_tokens(found), real(expected))
    assert found.shape == expected.shape
    assert real_tokens(unpadded) is not None


POINTWISE = {
    "activation": functional.gelu,
    "sum with itself": lambda x: x + x * 0.5,
    "keywords": lambda x: torch.add(x, x, alpha=3),
    "condition": lambda x: torch.where(x > 0, x, 0.0),
    "limits": lambda x: x.clamp(min=0.1),
    "copy": lambda x: x.clone(),
    "by entry": lambda x: torch.addcmul(random(ROWS, 1, WIDTH), x, random(WIDTH)),
}
LAYERS = {
    "linear": nn.Linear(WIDTH, 5),
    "linear without bias": nn.Linear(WIDTH, 5, bias=False),
    "layer norm": nn.LayerNorm(WIDTH),
    "plain layer norm": nn.LayerNorm(WIDTH, elementwise_affine=False),
    "root mean square norm": nn.RMSNorm(WIDTH),
}


@pytest.mark.parametrize("call", [*POINTWISE.values(), *LAYERS.values()], ids=[*POINTWISE, *LAYERS])
def test_an_operation_on_each_token_runs_on_the_real_tokens(padding, call):
    tensor, unpadded = pair(padding)
    with torch.no_grad():
        found, expected = call(unpadded), call(tensor)
    assert real_tokens(found) is not None
    torch.testing.assert_close(real_tokens(found).double(), real(expected).double())
    assert real_tokens(unpadded) is not None


WHOLE = {
    "view": lambda x: x.view(ROWS, LENGTH * WIDTH),
    "transposed": lambda x: x.transpose(1, 2),
    "sum over tokens": lambda x: x.sum(1),
    "token": lambda x: x[:, 0],
    "rows": lambda x: x[torch.tensor([1, 0])],
    "together": lambda x: torch.cat([x, x]),
    "mean of entries": lambda x: x.mean(-1),
    "norm over tokens too": lambda x: functional.layer_norm(x, (LENGTH, WIDTH)),
    "product of its own": lambda x: functional.linear(x[:, 0], x[0, :3]),
    "beside a higher one": lambda x: x + torch.ones(2, 1, 1, 1),
    "other type": lambda x: x.to(torch.float64),
    "list": lambda x: torch.tensor(x.tolist()),
    "array": lambda x: torch.from_numpy(x.numpy().copy()),
    "array of anything": lambda x: torch.from_numpy(np.asarray(x).copy()),
    "foreign tensor": lambda x: torch.from_dlpack(x),
    "twin": lambda x: torch.stack([x, x]).max(),
}


@pytest.mark.parametrize("call", WHOLE.values(), ids=WHOLE)
def test_any_other_operation_gets_the_padded_tensor_with_zeros(padding, call):
    tensor, unpadded = pair(padding)
    found = call(unpadded)
    assert type(found) is Tensor
    assert torch.equal(found, call(tensor))
    assert torch.equal(unpadded.padded(), tensor)


def test_its_memory_is_that_of_the_padded_tensor(padding):
    _, unpadded = pair(padding)
    assert unpadded.data_ptr() == unpadded.padded().data_ptr() != 0
    assert unpadded.untyped_storage().data_ptr() == unpadded.data_ptr()


def test_a_product_over_the_tokens_gets_the_padded_tensor(padding):
    numbers = torch.arange(1.0, 1 + ROWS * LENGTH).view(ROWS, LENGTH) * torch.from_numpy(MARKS)
    weight = random(2, LENGTH)
    found = functional.linear(UnpaddedTensor(real(numbers), padding), weight)
    assert torch.equal(found, functional.linear(numbers, weight))


def test_an_operation_that_adds_rows_gets_the_padded_tensor():
    padding = Padding(MARKS[:1])
    tensor = torch.ones(1, LENGTH, WIDTH) * torch.from_numpy(MARKS[:1])[:, :, None]
    unpadded = UnpaddedTensor(torch.ones(2, WIDTH), padding)
    more = random(ROWS, LENGTH, WIDTH)
    assert torch.equal(unpadded + more, tensor + more)


def test_what_is_changed_in_place_is_the_same_tensor(padding):
    tensor, unpadded = pair(padding)
    other, before = random(ROWS, LENGTH, WIDTH), unpadded
    unpadded += other
    functional.relu_(unpadded)
    assert torch.equal(before.padded(), functional.relu(tensor + other))
    assert torch.equal(unpadded, before.padded())


def test_an_ordinary_tensor_is_changed_in_place_by_an_unpadded_one(padding):
    tensor, unpadded = pair(padding)
    total = other = random(ROWS, LENGTH, WIDTH)
    expected = other + tensor
    total += unpadded
    assert total is other
    assert torch.equal(other, expected)


def test_a_change_through_a_view_is_seen(padding):
    tensor, unpadded = pair(padding)
    unpadded[:, 1] = 7.0
    tensor[:, 1] = 7.0
    assert torch.equal(padded(unpadded + 1.0), tensor + 1.0)


def test_tensors_of_different_paddings_are_padded(padding):
    tensor, unpadded = pair(padding)
    other, also = pair(Padding(MARKS.copy()), seed=1)
    assert torch.equal(unpadded + also, tensor + other)


def test_a_list_of_tensors_is_padded(padding):
    tensor, unpadded = pair(padding)
    (found,) = torch._foreach_add([unpadded], 1.0)
    assert torch.equal(found, tensor + 1.0)


class Output(NamedTuple):
    hidden: Tensor
    more: list[Tensor]


def test_outputs_of_any_form_are_padded(padding):
    tensor, unpadded = pair(padding)
    untouched = (torch.ones(1), None, "text")
    assert padded(untouched) is untouched
    found = padded(Output(unpadded, [unpadded, unpadded * 2.0]))
    assert type(found) is Output
    assert [type(each) for each in (found.hidden, *found.more)] == [Tensor] * 3
    assert torch.equal(found.more[1], tensor * 2)
    mapping = {"hidden": pair(padding)[1], "text": "text"}
    assert padded(mapping) is mapping
    assert torch.equal(mapping["hidden"], tensor)
