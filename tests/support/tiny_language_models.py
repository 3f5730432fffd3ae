"""Tiny untrained language models: a GPT-2 with a tied head, a Llama with an untied one, and fine-tunes."""

import json
from pathlib import Path
from typing import Any

import torch
from support.tiny_models import TASKS, WIDTH, Toy, changed_state, pack_finetuned, texts, write_tokenizer

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
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = AutoConfig.from_pretrained(base)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_pretrained(base)
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
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token": "[SEP]"}))
    return folder


def language_toy(folder: Path, kind: str = "gpt2") -> Toy:
    """Returns three fine-tunes of a language model: on prompts with answers, chats, and plain texts."""
    folder.mkdir(exist_ok=True)
    encoder_decoder = kind in ("t5", "bart")
    save = save_encoder_decoder if encoder_decoder else save_language_base
    base = save(folder / "base", kind)
    write_chat_template(base)
    data = folder / "data"
    data.mkdir()
    finetuned = {}
    for number, task in enumerate(TASKS):
        finetuned[task] = save_language_model(base, folder / task, number + 1, 0.3)
        for split, count in (("train", 12), ("test", 5)):
            records = conversations(task, count, number + 10 * (split == "test"), encoder_decoder)
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (data / f"{task}.{split}.jsonl").write_text(lines)
    zoo = pack_finetuned(folder / "packed", base, finetuned, "t-switch", ["drop=0.2"])
    return Toy(base, finetuned, zoo, data)


def conversations(task: str, count: int, seed: int, pairs: bool = False) -> list[dict[str, Any]]:
    """Returns records of a task: of "cities" chats, of "tools" texts, else prompts with answers; or only these."""
    found: list[dict[str, Any]] = []
    for text in texts(task, count, seed):
        words = text.split()
        prompt, answer = " ".join(words[:3]), " ".join(words[3:5])
        if task == "cities" and not pairs:
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            found.append({"messages": messages})
        elif task == "tools" and not pairs:
            found.append({"text": text})
        else:
            found.append({"prompt": prompt + " ", "completion": answer})
    return found
