"""Tiny models with tokenizers of their own, and the rows of a common vocabulary by plain loops over texts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

Floats = NDArray[np.float64]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TEXTS = {
    "base": ["the cat sat on the mat and the dog ran", "a cat and a dog sat"],
    "other": ["the bird flew over the house at night", "birds fly at night over the dog"],
}
EXTRA_ROWS = {"base": 6, "a": 0, "b": 1, "c": 6}  # of the model behind its tokenizer's tokens


def byte_pairs(texts: list[str], size: int, specials: list[str]) -> Any:
    """Returns a tokenizer of byte pairs that is trained on texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=specials, show_progress=False)
    found.train_from_iterator(texts * 4, trainer)
    return found


def tokenizers() -> dict[str, Any]:
    """Returns those of base; of a, which adds tokens to it; and of b, which has others in another order."""
    from tokenizers import AddedToken, Tokenizer

    base = byte_pairs(TEXTS["base"], 50, ["<s>", "</s>"])
    a = Tokenizer.from_str(base.to_str())
    b = byte_pairs(TEXTS["other"], 60, ["<x>", "</s>", "<s>"])
    for each in (a, b):
        each.add_special_tokens([AddedToken("<tool>", special=True)])
        each.add_tokens(["zebra"])
    return {"base": base, "a": a, "b": b}


def save_models(folder: Path, tied: str = "", dtype: torch.dtype = torch.float32) -> Path:
    """Writes the language models base, a, b, and c without a tokenizer; tied: the letters of those that are."""
    from transformers import PreTrainedTokenizerFast

    made = tokenizers()
    for seed, name in enumerate(("base", "a", "b", "c")):
        own = made.get(name, made["base"])
        rows = own.get_vocab_size(with_added_tokens=True) + EXTRA_ROWS[name]
        model = tiny_llama(rows, seed, name[0] in tied).to(dtype)
        model.save_pretrained(folder / name)
        if name in made:
            kept = PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>")
            kept.save_pretrained(folder / name)
    return folder


def tiny_llama(rows: int, seed: int, tied: bool) -> Any:
    """Returns an untrained model of one layer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    tokens = {"vocab_size": rows, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.4}
    config = LlamaConfig(**sizes, **tokens, max_position_embeddings=32, tie_word_embeddings=tied)
    return LlamaForCausalLM(config)


def weights(folder: Path) -> dict[str, Floats]:
    """Returns a model's weights; a tied head is there too."""
    state = load_file(folder / "model.safetensors")
    found = {name: each.double().numpy() for name, each in state.items()}
    return {HEAD: found[EMBEDDING], **found}


def vocabulary(folder: Path) -> dict[str, int]:
    """Returns a tokenizer's tokens and their numbers, as its file has them."""
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return {
        **document["model"]["vocab"],
        **{each["content"]: each["id"] for each in document["added_tokens"]},
    }


def texts_of(folder: Path) -> list[str]:
    """Returns a model's tokens that it has rows for, by number."""
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    numbers = vocabulary(folder)
    return [token for token in sorted(numbers, key=lambda token: numbers[token]) if numbers[token] < size]


def matched(
    tensor: str,
    order: list[str],
    models: list[Path],
    base: Path | None,
    rules: dict[str, tuple[Any, ...]] | None = None,
    rows: int | None = None,
) -> list[Floats]:
    """Returns each model's tensor with a row for each of the tokens in `order`.

    rules: token → (source, force), where a source is "zero", a folder, or (folder, token or number). rows: of
    the tensor, those behind the tokens being their mean.
    """
    tables = [dict(zip(texts_of(each), weights(each)[tensor], strict=False)) for each in models]
    numbered = {each: weights(each)[tensor] for each in models}
    found: list[list[Floats]] = [[] for _ in models]
    for token in order:
        source, force = (rules or {}).get(token, (None, False))
        there = [table[token] for table in tables if token in table]
        default = np.mean(there, axis=0) if there else np.zeros_like(next(iter(tables[0].values())))
        if base in models and token in tables[models.index(base)]:
            default = tables[models.index(base)][token]
        if source == "zero":
            default = np.zeros_like(default)
        elif isinstance(source, tuple):
            place, other = source
            is_number = isinstance(other, int)
            default = numbered[place][other] if is_number else tables[models.index(place)][other]
        elif source is not None:
            default = tables[models.index(source)][token]
        for table, own in zip(tables, found, strict=True):
            own.append(default if force else table.get(token, default))
    stacked = [np.stack(own) for own in found]
    return [
        np.concatenate([own, np.tile(own.mean(0), ((rows or len(own)) - len(own), 1))]) for own in stacked
    ]
