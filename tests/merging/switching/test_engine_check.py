"""What a list of layers does not tell about a module: its rows are answered as by the module itself."""

from dataclasses import dataclass

import pytest
import torch
from support import odd_modules
from support.checkpoints import memory_pair, message
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
from support.tiny_models import changed_state
from torch import nn

from flexswitch.codecs.errors import InputError
from flexswitch.merging.switching.batch_rows import copied, run, take_rows
from flexswitch.merging.switching.engine_check import Manner
from flexswitch.merging.switching.switched_model import SwitchedModel

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


@pytest.mark.parametrize(
    "first",
    [
        torch.tensor([[0.5, 0.5, 0], [0.5002, 0.4998, 0], [0.4999, 0.5001, 0], [0.5, 0.5, 0]]),
        1e-4 * torch.eye(4, 3),
        torch.tensor([[1.0, 0, 0]]).expand(4, 3),
    ],
    ids=["nearly equal", "tiny", "equal"],
)
@pytest.mark.parametrize("kind", [ReadTable, TokensFirst])
def test_a_first_batch_of_mixtures_that_change_little_does_not_pass_for_all(kind, first):
    parts = made(kind)
    assert_rows(parts, ROWS[:4], first)
    assert_rows(parts, ROWS[:4], weights_of(4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_wrong_token_is_found_in_short_dtypes(dtype):
    class FirstFromTable(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.line = nn.Embedding(3, 8), nn.Linear(8, 8)

        def forward(self, rows):
            return self.line(torch.cat([self.table.weight[0].expand(len(rows), 1, 8), rows], 1))

    module, model, base, states = made(lambda: FirstFromTable().to(dtype))
    rows = torch.randn(5, 40, 8).to(dtype)
    found = model(rows, weights=weights_of())
    for row, shares in enumerate(weights_of()):
        expected = mixed_answer(module, base, states, shares, lambda one, row=row: one(rows[row : row + 1]))
        torch.testing.assert_close(found[row], expected[0], rtol=0.05, atol=0.05)


def test_masks_in_an_output_do_not_hide_the_rest():
    class Masked(TokensFirst):
        def forward(self, rows):
            return super().forward(rows).masked_fill(rows[..., :1] > 1, torch.finfo(rows.dtype).min)

    assert_rows(made(Masked), ROWS, weights_of())


def test_a_list_with_an_item_for_each_row_goes_with_the_rows():
    class Shortened(TokensFirst):
        def forward(self, rows, lengths):
            found = super().forward(rows)
            return torch.stack([out[:length].sum(0) for out, length in zip(found, lengths, strict=True)])

    module, model, base, states = made(Shortened)
    lengths = [4, 1, 2, 3, 4]
    found = model({"rows": ROWS, "lengths": lengths}, weights=weights_of())
    for row, shares in enumerate(weights_of()):
        expected = mixed_answer(
            module,
            base,
            states,
            shares,
            lambda one, row=row: one(ROWS[row : row + 1], lengths[row : row + 1]),
        )
        torch.testing.assert_close(found[row], expected[0], rtol=1e-3, atol=1e-4)


def test_an_output_that_cannot_be_compared_is_refused_by_name():
    class Array(TokensFirst):
        def forward(self, rows):
            return super().forward(rows).numpy()

    assert message(InputError, lambda: made(Array)[1](ROWS, weights=weights_of())) == (
        "the module's output has a part without rows (ndarray), which rows of different mixtures cannot share; "
        "answer rows of one mixture in a batch of their own"
    )


@pytest.mark.parametrize("functional", [False, True])
def test_a_head_is_in_place_for_whatever_reads_it(functional):
    class Headed(nn.Module):
        def __init__(self):
            super().__init__()
            self.line, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, rows):
            rows = self.line(rows)
            if functional:
                return nn.functional.linear(rows, self.head.weight, self.head.bias)
            return self.head(rows.transpose(0, 1)).transpose(0, 1)

    torch.manual_seed(0)
    module = Headed().eval()
    base = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    states = [changed_state(base, 10 + number, 0.3) for number in range(3)]
    body = {name: tensor for name, tensor in base.items() if "head" not in name}
    vectors = {f"task{number}": memory_pair(body, state) for number, state in enumerate(states)}
    for engine in ("auto", "grouped"):
        model = SwitchedModel(module, vectors, engine=engine)
        model(ROWS[:4], weights=torch.tensor([[1.0, 0, 0]]).expand(4, 3))  # of one head
        found = model(ROWS[:4], weights=torch.eye(3)[[0, 1, 2, 0]])
        for row, task in enumerate((0, 1, 2, 0)):
            expected = torch.func.functional_call(module, states[task], (ROWS[row : row + 1],))
            torch.testing.assert_close(found[row], expected[0].detach(), rtol=1e-3, atol=1e-4)


def test_a_generation_takes_options_of_rows_and_leaves_random_numbers_as_they_were():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=0,
    )  # fmt: skip
    _, model, *_ = made(lambda: LlamaForCausalLM(config))
    options = {"attention_mask": torch.ones_like(IDS), "do_sample": True, "max_new_tokens": 4}
    found = []
    for _ in range(2):  # the first is compared
        torch.manual_seed(1)
        found.append(model.generate(IDS, weights=weights_of(12), **options))
    assert torch.equal(*found)


class Steady(nn.Module):
    """Returns numbers that its weights change little."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(8, 3)

    def forward(self, rows):
        return 1e5 + self.line(rows)


@pytest.mark.parametrize("lambda_", [1.0, -0.5, 0.0])
def test_outputs_that_change_little_and_any_scale_of_the_tasks_are_compared(lambda_):
    torch.manual_seed(0)
    module = Steady().eval()
    base = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    state = changed_state(base, 1, 0.3)
    model = SwitchedModel(module, {"task": memory_pair(base, state)}, lambda_=lambda_)
    found = model(ROWS, weights=torch.ones(5, 1))
    moved = {name: tensor + lambda_ * (state[name] - tensor) for name, tensor in base.items()}
    torch.testing.assert_close(found, torch.func.functional_call(module, moved, (ROWS,)).detach())


def test_weights_that_a_short_dtype_does_not_hold_are_not_asked_for():
    torch.manual_seed(0)
    module = nn.Linear(8, 3).half().eval()
    nn.init.constant_(module.weight, 3e4)
    base = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    state = {**base, "bias": base["bias"] + 1, "weight": base["weight"] + 32}
    model = SwitchedModel(module, {"task": memory_pair(base, state)})
    rows = torch.randn(5, 8).half() / 64
    found = model(rows, weights=torch.ones(5, 1))
    expected = torch.func.functional_call(module, state, (rows,)).detach()
    torch.testing.assert_close(found, expected, rtol=0.05, atol=2)
