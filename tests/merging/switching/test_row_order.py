"""Rows of one mixture are brought together in a batch; every form of output has them where they were."""

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from support.checkpoints import memory_pair
from support.tiny_language_models import language_model, save_language_base
from support.tiny_models import changed_state
from torch import nn
from transformers import GenerationConfig

from flexswitch.codecs.errors import InputError
from flexswitch.merging.switching.generation import new_tokens
from flexswitch.merging.switching.switched_model import SwitchedModel

Pair = namedtuple("Pair", ["first", "second"])
WEIGHTS = torch.tensor([[1.0, 0], [0, 1], [0.5, 0.5], [1, 0], [0, 0], [0, 1], [1, 0]])


class Shaped(nn.Module):
    """Multiplies rows, and returns the result in some form; `note` is called with the rows."""

    def __init__(self, form, note):
        super().__init__()
        self.linear, self.form, self.note = nn.Linear(4, 3), form, note

    def forward(self, rows):
        self.note(rows.clone())
        return self.form(self.linear(rows))


TABLE = torch.arange(7.0)[:, None]  # as many rows as the batch has
FORMS = {  # the output, the part that has rows, and whether these can be moved
    "tensor": (lambda out: out, lambda found: found, True),
    "named tuple": (lambda out: Pair(out, None), lambda found: found.first, True),
    "list": (lambda out: [out, out.sum()], lambda found: found[0], True),
    "mapping": (lambda out: {"out": (out,)}, lambda found: found["out"][0], True),
    "tuple": (lambda out: (out, out + 1), lambda found: found[0], True),
    "mapping with None": (lambda out: {"out": out, "nothing": None}, lambda found: found["out"], True),
    "nested": (lambda out: {"layers": (out * 2, (out,))}, lambda found: found["layers"][1][0], True),
    "minus infinity": (lambda out: out.masked_fill(out < -9, -torch.inf), lambda found: found, True),
    "another type": (lambda out: SimpleNamespace(out=out), lambda found: found.out, False),
    "an item a row": (lambda out: list(out), torch.stack, False),
    "numbers": (lambda out: out.tolist(), torch.tensor, False),
    "rows last": (lambda out: out.T, lambda found: found.T, False),
    "a table beside": (lambda out: (out, TABLE), lambda found: found[0] + 0 * found[1], False),
}


@pytest.mark.parametrize("engine", ["fused", "merged"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_output_has_the_rows_where_they_were(form, engine):
    torch.manual_seed(0)
    make, pick, can_move = FORMS[form]
    seen = []
    module, rows = Shaped(make, lambda given: seen.append(given)), torch.randn(7, 4)
    base = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    states = [changed_state(base, number, 0.5) for number in range(2)]
    vectors = {f"task{number}": memory_pair(base, state) for number, state in enumerate(states)}
    found = SwitchedModel(module, vectors, engine=engine)(rows, weights=WEIGHTS)
    assert type(found) is type(make(torch.zeros(7, 3)))
    for row, shares in enumerate(WEIGHTS.tolist()):
        mixed = {
            name: tensor
            + sum(share * (state[name] - tensor) for share, state in zip(shares, states, strict=True))
            for name, tensor in base.items()
        }
        expected = nn.functional.linear(rows[row], mixed["linear.weight"], mixed["linear.bias"])
        torch.testing.assert_close(pick(found)[row], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(seen[-1], rows) == (not can_move)
    if form == "a table beside":
        assert torch.equal(found[1], TABLE)


def test_a_language_models_cache_is_moved_with_the_rows(tmp_path):
    model = language_model("llama").from_pretrained(save_language_base(tmp_path / "base", "llama")).eval()
    base = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    vectors = {f"task{number}": memory_pair(base, changed_state(base, number, 0.5)) for number in range(2)}
    switched = SwitchedModel(model, vectors, engine="merged")
    ids = torch.randint(5, 20, (7, 4), generator=torch.Generator().manual_seed(0))
    switched({"input_ids": ids}, weights=WEIGHTS)  # shows that rows can be moved
    found = switched({"input_ids": ids}, weights=WEIGHTS).past_key_values
    for row in range(len(ids)):
        alone = switched({"input_ids": ids[row : row + 1]}, weights=WEIGHTS[row : row + 1]).past_key_values
        torch.testing.assert_close(found.layers[0].keys[row], alone.layers[0].keys[0], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings(
    "ignore:.past_key_values. is deprecated:FutureWarning"
)  # older ones know no other
def test_rows_stay_where_a_cache_of_an_earlier_call_has_them(tmp_path):
    model = language_model("llama").from_pretrained(save_language_base(tmp_path / "base", "llama")).eval()
    base = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    vectors = {f"task{number}": memory_pair(base, changed_state(base, number, 0.5)) for number in range(2)}
    switched = SwitchedModel(model, vectors, engine="merged")
    ids = torch.randint(5, 20, (7, 5), generator=torch.Generator().manual_seed(0))
    switched({"input_ids": ids}, weights=WEIGHTS)  # shows that rows can be moved
    cache = switched({"input_ids": ids[:, :4]}, weights=WEIGHTS).past_key_values
    found = switched({"input_ids": ids[:, 4:], "past_key_values": cache}, weights=WEIGHTS).logits[:, -1]
    for row in range(len(ids)):
        alone = switched({"input_ids": ids[row : row + 1]}, weights=WEIGHTS[row : row + 1]).logits[0, -1]
        torch.testing.assert_close(found[row], alone, rtol=1e-4, atol=1e-4)


class WithPatches(nn.Module):
    """Adds to each row the sum of its patches, which all stand in one tensor, row by row."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, rows, patches=None):
        added = 0 if patches is None else patches.view(len(rows), -1, 4).sum(1)
        return self.linear(rows + added)


def test_rows_stay_beside_patches_that_belong_to_them():
    torch.manual_seed(0)
    module, rows, patches = WithPatches(), torch.randn(7, 4), torch.randn(14, 4)
    base = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    vectors = {f"task{number}": memory_pair(base, changed_state(base, number, 0.5)) for number in range(2)}
    switched = SwitchedModel(module, vectors, engine="fused")
    switched({"rows": rows}, weights=WEIGHTS)  # shows that rows can be moved
    found = switched({"rows": rows, "patches": patches}, weights=WEIGHTS)
    expected = switched({"rows": rows + patches.view(7, 2, 4).sum(1)}, weights=WEIGHTS)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_rows_that_cannot_be_taken_apart_are_refused_and_one_mixture_is_answered():
    module, rows, patches = WithPatches(), torch.randn(7, 4), torch.randn(14, 4)
    base = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    vectors = {f"task{number}": memory_pair(base, changed_state(base, number, 0.5)) for number in range(2)}
    switched, batch = SwitchedModel(module, vectors, engine="grouped"), {"rows": rows, "patches": patches}
    with pytest.raises(InputError) as caught:
        switched(batch, weights=WEIGHTS)
    assert str(caught.value) == (
        "the rows of this batch have different tasks and are answered apart, but 'patches' ([14, 4]) does not "
        "have its 7 rows first; answer rows of one mixture in a batch of their own"
    )
    own = torch.tensor([[0.0, 1.0]]).expand(7, 2)
    expected = switched({"rows": rows + patches.view(7, 2, 4).sum(1)}, weights=own)
    torch.testing.assert_close(switched(batch, weights=own), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_return_sequences": 2, "num_beams": 2}, {"do_sample": True}])
def test_generated_sequences_stand_where_their_prompts_do(tmp_path, options):
    model = language_model("llama").from_pretrained(save_language_base(tmp_path / "base", "llama")).eval()
    base = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    vectors = {f"task{number}": memory_pair(base, changed_state(base, number, 0.5)) for number in range(2)}
    ids = torch.randint(5, 20, (7, 4), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    switched = SwitchedModel(model, vectors, engine="merged")
    found = switched.generate(batch, WEIGHTS, max_new_tokens=3, **options)
    copies = options.get("num_return_sequences", 1)
    assert torch.equal(found[:, :4], ids.repeat_interleave(copies, 0))
    for row in range(len(ids) if "do_sample" not in options else 0):
        own = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        alone = switched.generate(own, WEIGHTS[row : row + 1], max_new_tokens=3, **options)
        assert torch.equal(found[row * copies : (row + 1) * copies, : alone.shape[1]], alone)


@pytest.mark.parametrize(
    ("encodes", "options", "passes"),
    [
        (False, {"max_new_tokens": 5}, 4),  # after the prompt's pass, which gives the first
        (False, {"max_length": 12}, 1),
        (False, {"max_length": 8}, 0),
        (False, {"generation_config": GenerationConfig(max_new_tokens=3)}, 2),
        (False, {}, 9),
        (True, {"max_length": 12}, 11),  # the answer alone
        (True, {}, 19),
    ],
)
def test_the_passes_of_a_generation_are_counted(encodes, options, passes):
    module = nn.Module()
    module.config = SimpleNamespace(is_encoder_decoder=encodes)
    module.generation_config = GenerationConfig()
    assert new_tokens(module, {"input_ids": torch.ones(2, 10, dtype=torch.long)}, options) == passes


def test_a_generation_is_counted_where_the_first_tensor_has_one_entry_a_row():
    batch = {"speaker": torch.arange(2), "input_ids": torch.ones(2, 10, dtype=torch.long)}
    assert new_tokens(nn.Module(), batch, {"max_length": 12}) == 10
    assert new_tokens(nn.Module(), batch, {"max_new_tokens": 5}) == 4
