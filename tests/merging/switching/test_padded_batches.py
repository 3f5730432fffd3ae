"""Batches with padding: it is not computed, and changes nothing for the other tokens."""

from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from support.mixed_answers import ROWS, mixed_answer, switched, weights_of
from torch import nn

from flexswitch.merging.switching.unpadded_tensor import real_tokens


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
