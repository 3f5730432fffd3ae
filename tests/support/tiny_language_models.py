"""Tiny untrained language models: a GPT-2 with a tied head, a Llama with an untied one, and fine-tunes."""

import json
from pathlib import Path
from typing import Any

import torch
from support.tiny_models import WIDTH, changed_state, write_tokenizer

POSITIONS = 16


def language_model(kind: str) -> Any:
    """Returns an untrained model of two layers, "gpt2", "llama" or "gemma2"."""
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    shared = {"vocab_size": 40, "initializer_range": 0.4, "bos_token_id": 2, "eos_token_id": 3}
    if kind == "gpt2":
        sizes = {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}
        return GPT2LMHeadModel(GPT2Config(**shared, **sizes))
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24}
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "max_position_embeddings": POSITIONS}
    if kind == "gemma2":
        return Gemma2ForCausalLM(
            Gemma2Config(**shared, **sizes, **heads, head_dim=8, final_logit_softcapping=1.5)
        )
    return LlamaForCausalLM(LlamaConfig(**shared, **sizes, **heads, tie_word_embeddings=False))


def write_language_tokenizer(folder: Path, ends: bool = True, frames: bool = True) -> None:
    """Writes the tokenizer of `tiny_models` without a pad_token that would pad on the left.

    ends: whether it has an eos_token; frames: whether it adds tokens around a text.
    """
    write_tokenizer(folder)
    settings = folder / "tokenizer_config.json"
    entries = json.loads(settings.read_text()) | {"padding_side": "left"}
    del entries["pad_token"], entries["model_max_length"]
    if ends:
        entries["eos_token"] = "[SEP]"
    settings.write_text(json.dumps(entries))
    if not frames:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))


def save_language_base(folder: Path, kind: str, seed: int = 0) -> Path:
    """Writes a language model and its tokenizer."""
    torch.manual_seed(seed)
    language_model(kind).save_pretrained(folder)
    write_language_tokenizer(folder)
    return folder


def save_language_model(base: Path, folder: Path, seed: int, size: float = 0.1) -> Path:
    """Writes a fine-tune of a language model; tied tensors stay tied."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    own = dict(model.named_parameters())  # lists a tied tensor once
    changes = changed_state({name: tensor.detach() for name, tensor in own.items()}, seed, size)
    with torch.no_grad():
        for name, tensor in changes.items():
            own[name].copy_(tensor)
    model.save_pretrained(folder)
    return folder


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '[CLS] ' + message['role'] + ' ' + message['content'] + ' [SEP] ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[CLS] assistant ' }}{% endif %}"
)


def write_chat_template(folder: Path, template: str = CHAT_TEMPLATE) -> None:
    """Gives a model's tokenizer a chat template."""
    (folder / "chat_template.jinja").write_text(template)


def save_encoder_decoder(folder: Path, kind: str, seed: int = 0) -> Path:
    """Writes an untrained encoder-decoder of two and two layers, "t5" or "bart", and its tokenizer."""
    from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    shared = {
        "vocab_size": 40,
        "d_model": WIDTH,
        "pad_token_id": 0,
        "eos_token_id": 3,
        "decoder_start_token_id": 0,
    }
    if kind == "t5":
        sizes = {"d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "initializer_factor": 1.5}
        model = T5ForConditionalGeneration(T5Config(**shared, **sizes))
    else:
        heads = {
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "max_position_embeddings": 2 * POSITIONS,
        }
        sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
        model = BartForConditionalGeneration(BartConfig(**shared, **sizes, **heads, init_std=0.4))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder
