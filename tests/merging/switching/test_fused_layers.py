"""Layers of every kind inside a switched module against the module that holds the mixed weights."""

from importlib import import_module

import pytest
import torch
from support.checkpoints import message
from support.mixed_answers import ROWS, mixed_answer, switched, weights_of
from torch import nn

from flexswitch.codecs.errors import NotByRowsError


def assert_rows(module, inputs, engine="fused", pick=lambda out: out):
    model, base, states = switched(module, engine)
    weights = weights_of(len(inputs))
    found = pick(model(inputs, weights=weights))
    for row in range(len(inputs)):
        expected = pick(
            mixed_answer(module, base, states, weights[row], lambda one, r=row: one(inputs[r : r + 1]))
        )
        torch.testing.assert_close(found[row], expected[0], rtol=1e-4, atol=1e-5)


class Positions(nn.Module):
    """A table that is asked once for all rows, and a parameter of the module itself."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(6, 4)
        self.positions = nn.Embedding(6, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1])[None]
        return self.out(torch.tanh(self.table(tokens) + self.positions(places)))


class OwnParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, 1, 4))
        self.inner = nn.Linear(4, 4)

    def forward(self, rows):
        return self.inner(torch.cat([self.start.expand(len(rows), -1, -1), rows], 1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, rows):
        return self.attention(rows, rows, rows, need_weights=False)[0]


def transformers_conv1d():
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    return nn.Sequential(Conv1D(7, 4), nn.GELU(), Conv1D(3, 7))


class ChannelRMSNorm(nn.Module):
    """Has the name of transformers' norms, and another dimension."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, rows):
        return self.weight[:, None] * rows * rows.square().mean(1, keepdim=True).rsqrt()


ChannelRMSNorm.__module__ = "transformers.models"


def norm_of(family, name):
    torch.manual_seed(0)
    norm = getattr(import_module(f"transformers.models.{family}.modeling_{family}"), name)(4)
    nn.init.normal_(norm.weight)
    return norm


class ByName(nn.Module):
    """Gives a layer its input by the name that the layer has for it."""

    def __init__(self, layer, name):
        super().__init__()
        self.layer, self.name = layer, name

    def forward(self, rows):
        return self.layer(**{self.name: rows})


MODULES = {
    "linear, by name": (lambda: ByName(nn.Linear(4, 3), "input"), torch.randn(ROWS, 4)),
    "embedding, by name": (lambda: ByName(nn.Embedding(6, 4), "input"), torch.randint(6, (ROWS, 3))),
    "norm, by name": (lambda: ByName(nn.LayerNorm(4), "input"), torch.randn(ROWS, 3, 4)),
    "root mean square norm, by name": (lambda: ByName(nn.RMSNorm(4), "x"), torch.randn(ROWS, 3, 4)),
    "Llama's norm, by name": (
        lambda: ByName(norm_of("llama", "LlamaRMSNorm"), "hidden_states"),
        torch.randn(ROWS, 3, 4),
    ),
    "linear": (lambda: nn.Linear(4, 3), torch.randn(ROWS, 4)),
    "linear without bias, tokens": (lambda: nn.Linear(4, 3, bias=False), torch.randn(ROWS, 6, 4)),
    "norm": (lambda: nn.LayerNorm(4), torch.randn(ROWS, 3, 4)),
    "norm without bias": (lambda: nn.LayerNorm(4, bias=False), torch.randn(ROWS, 4)),
    "norm over two dimensions": (lambda: nn.LayerNorm([3, 4]), torch.randn(ROWS, 3, 4)),
    "embedding": (lambda: nn.Embedding(6, 4), torch.randint(6, (ROWS, 3))),
    "embedding that rescales itself": (lambda: nn.Embedding(6, 4, max_norm=1.0), torch.randint(6, (ROWS, 3))),
    "positions": (Positions, torch.randint(6, (ROWS, 3))),
    "root mean square norm": (lambda: nn.RMSNorm(4), torch.randn(ROWS, 3, 4)),
    "root mean square norm of rows": (lambda: nn.RMSNorm(4), torch.randn(ROWS, 4)),
    "root mean square norm over two dimensions": (lambda: nn.RMSNorm([3, 4]), torch.randn(ROWS, 3, 4)),
    "Llama's norm": (lambda: norm_of("llama", "LlamaRMSNorm"), torch.randn(ROWS, 3, 4)),
    "Llama's norm of heads": (lambda: norm_of("llama", "LlamaRMSNorm"), torch.randn(ROWS, 3, 2, 4)),
    "Gemma's norm, of a weight of one more": (
        lambda: norm_of("gemma", "GemmaRMSNorm"),
        torch.randn(ROWS, 3, 4),
    ),
    "a norm of channels": (ChannelRMSNorm, torch.randn(ROWS, 4, 5)),
    "T5's norm, flattened": (
        lambda: nn.Sequential(nn.Flatten(0, 1), norm_of("t5", "T5LayerNorm"), nn.Unflatten(0, (-1, 3))),
        torch.randn(ROWS, 3, 4),
    ),
    "batch norm with its buffers": (lambda: nn.BatchNorm1d(4), torch.randn(ROWS, 4)),
    "convolution": (lambda: nn.Conv2d(3, 2, 2), torch.randn(ROWS, 3, 4, 4)),
    "parameter of its own": (OwnParameter, torch.randn(ROWS, 3, 4)),
    "attention": (Attention, torch.randn(ROWS, 3, 4)),
    "flattened between": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Flatten(0, 1), nn.Linear(4, 4), nn.Unflatten(0, (-1, 3))),
        torch.randn(ROWS, 3, 4),
    ),
    "transformers' Conv1D": (transformers_conv1d, torch.randn(ROWS, 3, 4)),
    "transformers' Conv1D in float64": (
        lambda: transformers_conv1d().double(),
        torch.randn(ROWS, 3, 4).double(),
    ),
    "embedding in float64": (lambda: nn.Embedding(6, 4).double(), torch.randint(6, (ROWS, 3))),
    "float64": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).double(),
        torch.randn(ROWS, 3, 4).double(),
    ),
}


@pytest.mark.parametrize("engine", ["fused", "merged", "grouped"])
@pytest.mark.parametrize("kind", MODULES)
def test_each_row_passes_a_layer_with_its_own_weights(kind, engine):
    torch.manual_seed(1)
    make, inputs = MODULES[kind]
    assert_rows(make(), inputs, engine)


class Rounded(nn.Module):
    """A norm in float32 and one in bfloat16."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.LayerNorm(4), nn.LayerNorm(4).bfloat16()

    def forward(self, rows):
        return self.narrow(self.wide(rows).bfloat16())


@pytest.mark.parametrize("engine", ["fused", "merged"])
def test_norms_may_differ_in_their_dtypes(engine):
    torch.manual_seed(1)
    module, rows, weights = Rounded(), torch.randn(ROWS, 4), weights_of()
    model, base, states = switched(module, engine)
    found = model(rows, weights=weights)
    for row in range(ROWS):
        expected = mixed_answer(module, base, states, weights[row], lambda one, r=row: one(rows[r : r + 1]))
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found[row], expected[0], rtol=0.02, atol=0.03)


def test_a_layer_that_is_not_given_rows_first_is_refused_with_the_way_out():
    module = nn.Sequential(OrderedTokens(), nn.Linear(4, 4))
    model, _, _ = switched(module)
    for rows in (torch.randn(2, 3, 4), torch.randn(1, 3, 4).expand(2, 3, 4)):
        assert message(NotByRowsError, lambda rows=rows: model(rows, weights=weights_of(2))) == (
            "layers that answer each row under its own mixture do not give what this module gives with the "
            "weights of each: use engine='grouped'"
        )


def test_a_module_that_puts_tokens_first_is_found_where_the_counts_fit_and_auto_answers_it_in_groups():
    module = nn.Sequential(nn.Linear(4, 4), OrderedTokens(), nn.Linear(4, 4), OrderedTokens())
    inputs = torch.randn(2, 4, 4)
    model, _, _ = switched(module)
    assert "use engine='grouped'" in message(NotByRowsError, lambda: model(inputs, weights=weights_of(2)))
    assert_rows(module, inputs, "grouped")
    assert_rows(module, inputs, "auto")


class OrderedTokens(nn.Module):
    """Puts tokens before rows."""

    def forward(self, rows):
        return rows.transpose(0, 1)


def test_an_input_that_is_changed_in_place_between_two_layers_is_read_again():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, rows):
            rows = rows.clone()
            first = self.one(rows)
            rows += 1
            return first + self.two(rows)

    assert_rows(InPlace(), torch.randn(ROWS, 4))


def test_it_runs_in_inference_mode_and_has_no_gradients():
    model, _, _ = switched(nn.Linear(4, 3))
    rows = torch.randn(ROWS, 4)
    plain = model(rows, weights=weights_of())
    assert not plain.requires_grad
    with torch.inference_mode():
        assert torch.equal(model(rows, weights=weights_of()), plain)
