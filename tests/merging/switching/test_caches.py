"""Layers with a cache or state, or that are given no rows: those of several mixtures are answered apart."""

import pytest
import torch
from support.checkpoints import memory_pair, message
from support.mixed_answers import mixed_answer, weights_of
from support.tiny_models import changed_state
from torch import nn

from flexswitch.codecs.errors import NotByRowsError
from flexswitch.merging.switching.switched_model import SwitchedModel

IDS = torch.randint(3, 30, (5, 6), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
ALIKE = {name: tensor[:1].expand(5, -1) for name, tensor in BATCH.items()}


def mamba():
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(
        MambaConfig(
            vocab_size=32, hidden_size=16, num_hidden_layers=2, state_size=4, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
        )
    )  # fmt: skip


def gpt_oss():
    """Returns a model whose attention has parameters of its own, and is given the cache."""
    from transformers import GptOssConfig, GptOssForCausalLM

    return GptOssForCausalLM(
        GptOssConfig(
            vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, sliding_window=8,
        )
    )  # fmt: skip


def rwkv():
    """Returns a model whose layers change their state, a list of tensors, in place."""
    from transformers import RwkvConfig, RwkvForCausalLM

    return RwkvForCausalLM(
        RwkvConfig(
            vocab_size=32, hidden_size=16, num_hidden_layers=2, attention_hidden_size=16, bos_token_id=1,
            eos_token_id=2,
        )
    )  # fmt: skip


def recurrent_gemma():
    """Returns a model whose layers hold the state of their recurrence themselves."""
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    return RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
            lru_width=16, attention_window_size=8, conv1d_width=2, pad_token_id=0, head_dim=8,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def bart():
    """Returns a model whose decoder is given the positions of tokens, the same for all rows, without rows."""
    from transformers import BartConfig, BartForConditionalGeneration

    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=32, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, decoder_start_token_id=2, max_position_embeddings=20, tie_word_embeddings=False,
        )
    )  # fmt: skip


def made(make, engine):
    torch.manual_seed(0)
    module = make().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    base = {name: tensor.detach() for name, tensor in module.named_parameters()}
    states = [changed_state(base, 10 + number, 0.3) for number in range(3)]
    vectors = {f"task{number}": memory_pair(base, state) for number, state in enumerate(states)}
    return SwitchedModel(module, vectors, engine=engine), module, base, states


@pytest.mark.parametrize("batch", [BATCH, ALIKE], ids=["distinct", "alike"])
@pytest.mark.parametrize("make", [mamba, gpt_oss, rwkv, recurrent_gemma, bart])
def test_each_row_is_answered_alone(make, batch):
    model, module, base, states = made(make, "auto")
    found = model(batch, weights=weights_of()).logits
    for row, weights in enumerate(weights_of()):
        own = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        expected = mixed_answer(module, base, states, weights, lambda one, own=own: one(**own).logits)
        torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", [mamba, recurrent_gemma])
def test_a_cache_comes_with_the_first_generation_after_passes_without_one(make):
    model, module, base, states = made(make, "auto")
    model({**BATCH, "use_cache": False}, weights=weights_of())
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    found = model.generate(BATCH, weights=weights_of(), **options)
    for row, weights in enumerate(weights_of()):
        own = {name: tensor[row : row + 1] for name, tensor in BATCH.items()}
        expected = mixed_answer(
            module, base, states, weights, lambda one, own=own: one.generate(**own, **options)
        )
        assert torch.equal(found[row : row + 1], expected)


@pytest.mark.parametrize("batch", [BATCH, ALIKE], ids=["distinct", "alike"])
def test_the_fused_engine_refuses_it(batch):
    model, *_ = made(mamba, "fused")
    assert message(NotByRowsError, lambda: model(batch, weights=weights_of())) == (
        "layers that answer each row under its own mixture do not give what this module gives with the weights "
        "of each: use engine='grouped'"
    )
