"""Models that transformers calls by other arguments than a batch of token ids: each row is answered alone."""

import pytest
import torch
from support.mixed_answers import mixed_answer, switched, weights_of
from torch import nn

DRAWN = torch.Generator().manual_seed(0)
IDS = torch.randint(3, 30, (5, 6), generator=DRAWN)
ENDED = torch.cat([IDS[:, :-1], torch.full((5, 1), 2)], 1)
EMBEDDINGS = torch.randn(5, 6, 16, generator=DRAWN)
SOUNDS = torch.randn(5, 8, 40, generator=DRAWN)
IMAGES = torch.randn(5, 3, 8, 8, generator=DRAWN)
SIZES = {
    "vocab_size": 32, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3, "tie_word_embeddings": False,
}  # fmt: skip


def bart(kind):
    import transformers

    config = transformers.BartConfig(**SIZES, max_position_embeddings=20, num_labels=3)
    return getattr(transformers, f"BartFor{kind}")(config)


def t5(kind):
    import transformers

    config = transformers.T5Config(
        vocab_size=32, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0,
        eos_token_id=2, num_labels=3, tie_word_embeddings=False,
    )  # fmt: skip
    return getattr(transformers, f"T5For{kind}")(config)


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, pad_token_id=0, tie_word_embeddings=False,
        )
    )  # fmt: skip


def whisper():
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    return WhisperForConditionalGeneration(
        WhisperConfig(
            **SIZES, num_mel_bins=8, max_source_positions=20, max_target_positions=20, suppress_tokens=[0, 2],
            begin_suppress_tokens=None,
        )
    )  # fmt: skip


def image_captions():
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    encoder = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=8,
        patch_size=4,
    )  # fmt: skip
    decoder = GPT2Config(
        vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=20, add_cross_attention=True,
        is_decoder=True, tie_word_embeddings=False,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder, decoder, decoder_start_token_id=1, pad_token_id=0, tie_word_embeddings=False
    )
    return VisionEncoderDecoderModel(config)


def made(make):
    torch.manual_seed(0)
    module = make()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module, *switched(module, "auto")


@pytest.mark.parametrize(
    ("make", "batch"),
    [
        (lambda: bart("SequenceClassification"), {"input_ids": ENDED}),
        (lambda: t5("SequenceClassification"), {"input_ids": ENDED}),
        (whisper, {"input_features": SOUNDS, "decoder_input_ids": IDS}),
    ],
    ids=["bart classifies", "t5 classifies", "whisper"],
)
def test_an_encoder_decoder_answers_a_batch(make, batch):
    module, model, base, states = made(make)
    found = model(batch, weights=weights_of()).logits
    for row, weights in enumerate(weights_of()):
        own = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        expected = mixed_answer(module, base, states, weights, lambda one, own=own: one(**own).logits)
        torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "batch"),
    [
        (llama, {"inputs": IDS}),
        (llama, {"inputs_embeds": EMBEDDINGS}),
        (lambda: t5("ConditionalGeneration"), {"inputs": IDS}),
        (lambda: t5("ConditionalGeneration"), {"inputs_embeds": EMBEDDINGS}),
        (lambda: bart("ConditionalGeneration"), {"input_ids": IDS}),
        (whisper, {"input_features": SOUNDS}),
        (image_captions, {"pixel_values": IMAGES}),
        (image_captions, {"inputs": IMAGES}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else getattr(value, "__name__", None),
)
def test_each_prompt_is_continued_alone(make, batch):
    module, model, base, states = made(make)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    found = model.generate(batch, weights=weights_of(), **options)
    for row, weights in enumerate(weights_of()):
        own = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        expected = mixed_answer(
            module, base, states, weights, lambda one, own=own: one.generate(**own, **options)
        )
        assert torch.equal(found[row : row + 1, : expected.shape[1]], expected)
        assert not found[row, expected.shape[1] :].any()  # it ended before others
