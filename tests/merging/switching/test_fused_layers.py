"""Layers of every kind inside a switched module against the module that holds the mixed weights."""

from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from support.checkpoints import memory_pair, message
from support.tiny_models import changed_state
from torch import nn

from flexswitch.codecs.errors import InputError
from flexswitch.merging.switching.batch_first import RowCheck, check_rows, distinct_rows
from flexswitch.merging.switching.switched_model import SwitchedModel
from flexswitch.merging.switching.unpadded_tensor import real_tokens

ROWS, TASKS = 5, 3


def switched(module, engine="fused", size=0.3):
    """Returns the module wrapped with three tasks that change all of its weights, and their states."""
    base = {
        name: tensor.detach() for name, tensor in module.state_dict().items() if tensor.is_floating_point()
    }
    states = [changed_state(base, 10 + number, size) for number in range(TASKS)]
    vectors = {f"task{number}": memory_pair(base, state) for number, state in enumerate(states)}
    return SwitchedModel(module.eval(), vectors, engine=engine), base, states


def weights_of(rows=ROWS):
    weights = torch.tensor([[1.0, 0, 0], [0, 0.6, 0.4], [1, 0, 0], [0, 0, 0], [0.2, 0.3, 0.5]])
    return weights[torch.arange(rows) % len(weights)]


def mixed_answer(module, base, states, row, call):
    """Returns the result of a call of the module with one row's mixed weights, and its task's buffers."""
    own = {
        name: tensor
        + sum(share * (state[name] - tensor) for share, state in zip(row.tolist(), states, strict=True))
        for name, tensor in base.items()
    }
    if row.any():
        own |= {name: states[int(row.argmax())][name] for name, _ in module.named_buffers() if name in base}
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.load_state_dict({**before, **own})
    with torch.no_grad():
        found = call(module)
    module.load_state_dict(before)
    return found


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


MODULES = {
    "linear": (lambda: nn.Linear(4, 3), torch.randn(ROWS, 4)),
    "linear without bias, tokens": (lambda: nn.Linear(4, 3, bias=False), torch.randn(ROWS, 6, 4)),
    "norm": (lambda: nn.LayerNorm(4), torch.randn(ROWS, 3, 4)),
    "norm without bias": (lambda: nn.LayerNorm(4, bias=False), torch.randn(ROWS, 4)),
    "norm over two dimensions": (lambda: nn.LayerNorm([3, 4]), torch.randn(ROWS, 3, 4)),
    "embedding": (lambda: nn.Embedding(6, 4), torch.randint(6, (ROWS, 3))),
    "embedding that rescales itself": (lambda: nn.Embedding(6, 4, max_norm=1.0), torch.randint(6, (ROWS, 3))),
    "positions": (Positions, torch.randint(6, (ROWS, 3))),
    "root mean square norm": (lambda: nn.RMSNorm(4), torch.randn(ROWS, 3, 4)),
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
    assert message(InputError, lambda: model(torch.randn(2, 3, 4), weights=weights_of(2))) == (
        "the module '1' is not given the rows of a batch first: use engine='grouped'"
    )
    same = torch.randn(1, 3, 4).expand(2, 3, 4)  # equal rows show no order: only their count is checked
    assert message(InputError, lambda: switched(module)[0](same, weights=weights_of(2))) == (
        "the module '1' is given a first dimension of 3, expected a multiple of the batch's 2 rows: use "
        "engine='grouped'"
    )


def test_a_module_that_puts_tokens_first_is_found_where_the_counts_fit_and_auto_answers_it_in_groups():
    module = nn.Sequential(nn.Linear(4, 4), OrderedTokens(), nn.Linear(4, 4), OrderedTokens())
    inputs = torch.randn(2, 4, 4)
    model, _, _ = switched(module)
    assert "the module '2' is not given the rows of a batch first" in message(
        InputError, lambda: model(inputs, weights=weights_of(2))
    )
    assert_rows(module, inputs, "grouped")
    assert_rows(module, inputs, "auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_first_are_recognised_whatever_the_numbers_are(dtype):
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)).to(dtype)
    rows = 1e3 * torch.randn(ROWS, 2, 4, dtype=dtype)
    rows[1] = torch.nan
    assert check_rows(module, ["0", "1", "2"], rows, (0, 1)) == RowCheck(None, True)
    assert check_rows(module, ["0", "1", "2"], rows, (0, 2)) == RowCheck(None, True)
    assert distinct_rows(rows[2:3].expand(ROWS, 2, 4)) is None
    assert distinct_rows({"rows": torch.tensor([4, 4, 5])}) == (0, 2)


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


class Masked(nn.Module):
    """Embeds, adds positions, normalises and multiplies."""

    def __init__(self):
        super().__init__()
        self.table, self.places = nn.Embedding(6, 4), nn.Embedding(8, 4)
        self.norm, self.product = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, tokens, attention_mask):
        there = self.table(tokens) + self.places(torch.arange(tokens.shape[1])[None])
        return self.product(self.norm(there))


@pytest.mark.parametrize("engine", ["fused", "merged"])
@pytest.mark.parametrize("left", [1, 2, 3, 7, 8])
def test_padding_on_either_side_changes_nothing_for_the_other_tokens(left, engine):
    torch.manual_seed(2)
    module = Masked()
    model, base, states = switched(module, engine)
    tokens, mask = torch.randint(6, (ROWS, 8)), torch.ones(ROWS, 8, dtype=torch.long)
    mask[1, left:], mask[2, : 8 - left], mask[4, left:] = 0, 0, 0
    found = model({"tokens": tokens, "attention_mask": mask}, weights=weights_of())
    for row, shares in enumerate(weights_of()):
        expected = mixed_answer(
            module, base, states, shares, lambda one, r=row: one(tokens[r : r + 1], mask[r : r + 1])
        )
        own = mask[row] == 1
        torch.testing.assert_close(found[row, own], expected[0, own], rtol=1e-4, atol=1e-5)


class Pictured(Masked):
    """Has another stream of tokens, by chance as many as the text has."""

    def __init__(self, is_encoder_decoder=False):
        super().__init__()
        self.picture = nn.Linear(2, 3)
        self.config = SimpleNamespace(is_encoder_decoder=is_encoder_decoder)

    def forward(self, tokens, attention_mask, pixels=None):
        places = torch.zeros(*tokens.shape, 2) if pixels is None else pixels.flatten(2).mT
        return super().forward(tokens, attention_mask) + self.picture(places + 1)


@pytest.mark.parametrize("kind", ["decoder", "picture"])
def test_a_mask_that_may_not_cover_all_tokens_removes_nothing(kind):
    torch.manual_seed(3)
    model, _, _ = switched(Pictured(is_encoder_decoder=kind == "decoder"))
    mask = torch.ones(ROWS, 8, dtype=torch.long)
    mask[:, 2:] = 0
    batch = {"tokens": torch.randint(6, (ROWS, 8))}
    if kind == "picture":
        batch["pixels"] = torch.randn(ROWS, 2, 2, 4)
    found = model({**batch, "attention_mask": mask}, weights=weights_of())
    whole = model({**batch, "attention_mask": torch.ones_like(mask)}, weights=weights_of())
    assert torch.equal(found, whole)


@pytest.mark.parametrize("engine", ["fused", "merged", "grouped"])
def test_a_batch_of_padding_alone_has_finite_answers(engine):
    model, _, _ = switched(Masked(), engine)
    tokens = torch.zeros(ROWS, 8, dtype=torch.long)
    found = model({"tokens": tokens, "attention_mask": torch.zeros_like(tokens)}, weights=weights_of())
    assert found.shape == (ROWS, 8, 3)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(("padding", "computed"), [(0, 40), (3, 40), (6, 34), (20, 20)])
def test_much_padding_is_not_computed_at_all(padding, computed):
    mask = (torch.arange(40) >= padding).view(ROWS, 8).long()
    model, _, _ = switched(Masked())
    tokens = torch.zeros(ROWS, 8, dtype=torch.long)
    found = model({"tokens": tokens, "attention_mask": mask}, weights=weights_of())
    assert found.shape == (ROWS, 8, 3)
    assert int((found != 0).any(-1).sum()) == computed


class Counting(nn.Module):
    """An activation that notes how many tokens it is computed of."""

    counts: ClassVar[list[int]] = []

    def forward(self, tokens):
        real = real_tokens(tokens)
        self.counts.append(tokens.shape[:-1].numel() if real is None else len(real))
        return torch.tanh(tokens)


@pytest.mark.parametrize("engine", ["fused", "merged"])
@pytest.mark.parametrize(("padding", "computed"), [(0, 40), (5, 40), (6, 34)])
def test_much_padding_is_skipped_between_layers_too(padding, computed, engine):
    module = Masked()
    module.product = nn.Sequential(nn.Linear(4, 3), Counting(), nn.Linear(3, 2))
    model, _, _ = switched(module, engine)
    mask = (torch.arange(40) >= padding).view(ROWS, 8).long()
    tokens = torch.randint(6, (ROWS, 8))
    model({"tokens": tokens, "attention_mask": mask}, weights=weights_of())
    Counting.counts.clear()
    found = model({"tokens": tokens, "attention_mask": mask}, weights=weights_of())
    assert type(found) is torch.Tensor
    assert Counting.counts == [computed]


@pytest.mark.parametrize("engine", ["fused", "merged"])
def test_padded_tokens_that_are_changed_through_a_view_are_read_again(engine):
    class Changing(Masked):
        def forward(self, tokens, attention_mask):
            there = self.norm(self.table(tokens))
            first = self.product(there)
            there[:, 0] = 1.0
            second = self.product(there)
            there[:, 0] = 2.0
            return first + second - self.product(there)

    torch.manual_seed(4)
    module = Changing()
    model, base, states = switched(module, engine)
    tokens, mask = torch.randint(6, (ROWS, 8)), torch.ones(ROWS, 8, dtype=torch.long)
    mask[:, 3:] = 0
    found = model({"tokens": tokens, "attention_mask": mask}, weights=weights_of())
    for row, shares in enumerate(weights_of()):
        expected = mixed_answer(module, base, states, shares, lambda one, r=row: one(tokens[r : r + 1], None))
        torch.testing.assert_close(found[row, :3], expected[0, :3], rtol=1e-4, atol=1e-5)


def test_it_runs_in_inference_mode_and_has_no_gradients():
    model, _, _ = switched(nn.Linear(4, 3))
    rows = torch.randn(ROWS, 4)
    plain = model(rows, weights=weights_of())
    assert not plain.requires_grad
    with torch.inference_mode():
        assert torch.equal(model(rows, weights=weights_of()), plain)
