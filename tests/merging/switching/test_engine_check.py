"""What a list of layers does not tell about a module: its rows are answered as by the module itself."""

from dataclasses import dataclass

import pytest
import torch
from support import odd_modules
from support.mixed_answers import mixed_answer, switched, weights_of
from support.odd_modules import (
    ClassesFirst,
    Computed,
    EncoderLayer,
    Experts,
    GivenState,
    InPlace,
    MeanOfTokens,
    Positions,
    ReadTable,
    Recurrence,
    ScaledHead,
    Shifted,
    Slots,
    Temperature,
    TiedOutput,
    TokensFirst,
)
from torch import nn

from flexswitch.merging.switching.batch_rows import copied, run, take_rows
from flexswitch.merging.switching.engine_check import Manner

DRAWN = torch.Generator().manual_seed(0)
ROWS = torch.randn(5, 4, 8, generator=DRAWN)
IDS = torch.randint(3, 30, (12, 7), generator=DRAWN)
LENGTHS = torch.tensor([3, 7, 4, 5, 2, 7, 1, 6, 3, 3, 2, 4])
KINDS = [
    ClassesFirst, Computed, EncoderLayer, Experts, GivenState, InPlace, Positions, ReadTable, Recurrence, ScaledHead, Shifted,
    Temperature, TiedOutput, TokensFirst,
]  # fmt: skip


def made(kind, engine="auto"):
    torch.manual_seed(0)
    module = kind().eval()
    return module, *switched(module, engine)


def assert_rows(parts, batch, weights, axis=0):
    """Asserts that each row of a batch is answered as by the module with its mixture's weights."""
    module, model, base, states = parts
    found = model(copied(batch), weights=weights)
    for row, shares in enumerate(weights):
        own = take_rows(batch, torch.tensor([row]), len(weights))
        expected = mixed_answer(module, base, states, shares, lambda one, own=own: run(one, copied(own)))
        torch.testing.assert_close(found.narrow(axis, row, 1), expected, rtol=1e-3, atol=1e-4)


def padded(tokens):
    mask = (torch.arange(tokens) < LENGTHS[:, None].clamp(max=tokens)).long()
    return {"input_ids": IDS[:, :tokens], "attention_mask": mask}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("batch", "weights"),
    [
        (ROWS, weights_of()),
        (ROWS[:1].expand(5, 4, 8), weights_of()),
        (ROWS[:1], weights_of()[4:]),
        (torch.cat([ROWS, ROWS + 1, ROWS - 1]), weights_of(15)),
    ],
    ids=["five rows", "equal rows", "one row", "many rows"],
)
def test_each_row_is_what_the_module_gives_with_its_own_weights(kind, batch, weights):
    assert_rows(made(kind), batch, weights, axis=1 if kind is ClassesFirst else 0)


def test_another_number_of_tokens_is_another_kind_of_batch():
    parts = made(TokensFirst)
    assert_rows(parts, ROWS[:, :1], weights_of())
    assert_rows(parts, torch.randn(5, 5, 8), weights_of())


@pytest.mark.parametrize("kind", [MeanOfTokens, Slots])
@pytest.mark.parametrize("tokens", [(7, 6), (6, 7)])
def test_padding_is_computed_where_the_module_reads_it_or_may_take_it_for_something_else(kind, tokens):
    parts = made(kind)
    for count in tokens:
        assert_rows(parts, padded(count), weights_of(12))


def test_padding_is_skipped_where_nothing_reads_it():
    class FirstToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.line = nn.Embedding(32, 8), nn.Linear(8, 3)

        def forward(self, input_ids, attention_mask):
            return self.line(self.table(input_ids))[:, 0]

    parts = made(FirstToken)
    assert_rows(parts, padded(7), weights_of(12))
    (checked,) = parts[1]._loaded.check._checked.values()
    assert [each.manner for each in checked] == [Manner(skips=True, moves=True)]


@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
def test_a_batch_of_the_caller_is_left_as_it_is():
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    module, model, base, states = made(lambda: LlamaForCausalLM(config))
    cache = DynamicCache()
    found = model({"input_ids": IDS[:2], "past_key_values": cache}, weights=weights_of(2)).logits
    assert cache.get_seq_length() == IDS.shape[1]
    for row, shares in enumerate(weights_of(2)):
        expected = mixed_answer(
            module, base, states, shares, lambda one, row=row: one(input_ids=IDS[row : row + 1])
        )
        torch.testing.assert_close(found[row], expected.logits[0], rtol=1e-3, atol=1e-4)


@dataclass
class Answer:
    """A form of output."""

    rows: torch.Tensor
    name: str


OUTPUTS = {
    "list": (lambda out: [out], lambda found: found[0]),
    "list of rows": (lambda out: list(out), torch.stack),
    "text beside": (lambda out: (out, "name", 3), lambda found: found[0]),
    "mapping": (lambda out: {"rows": out, "more": [out], "name": "x"}, lambda found: found["more"][0]),
    "dataclass": (lambda out: Answer(out, "x"), lambda found: found.rows),
    "loss beside": (lambda out: {"loss": out.sum(), "rows": out}, lambda found: found["rows"]),
}


@pytest.mark.parametrize("form", OUTPUTS)
def test_outputs_of_rows_that_are_answered_apart_have_their_form(form):
    make, pick = OUTPUTS[form]

    class Formed(TokensFirst):
        def forward(self, rows):
            return make(super().forward(rows))

    module, model, base, states = made(Formed)
    found = model(ROWS, weights=weights_of())
    assert type(found) is type(make(torch.zeros(5, 3)))
    for row, shares in enumerate(weights_of()):
        expected = mixed_answer(
            module, base, states, shares, lambda one, row=row: pick(one(ROWS[row : row + 1]))
        )
        torch.testing.assert_close(pick(found)[row], expected[0], rtol=1e-3, atol=1e-4)


def test_every_odd_module_is_in_the_table():
    named = {name for name, kind in vars(odd_modules).items() if isinstance(kind, type)} - {"Any", "Tensor"}
    assert named == {kind.__name__ for kind in (*KINDS, MeanOfTokens, odd_modules.Offset, Slots)}


def test_padding_is_compared_where_there_is_some():
    parts = made(MeanOfTokens)
    whole = padded(7)
    assert_rows(parts, {**whole, "attention_mask": torch.ones_like(IDS)}, weights_of(12))
    assert_rows(parts, whole, weights_of(12))


def test_a_batch_that_the_module_does_not_take_decides_nothing():
    parts = made(MeanOfTokens)
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    with pytest.raises(IndexError):
        parts[1]({**batch, "input_ids": IDS + 99}, weights=weights_of(12))
    assert_rows(parts, batch, weights_of(12))
    (checked,) = parts[1]._loaded.check._checked.values()
    assert [each.manner for each in checked] == [Manner(skips=True, moves=True)]
