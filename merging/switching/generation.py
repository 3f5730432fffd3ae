"""What transformers' `generate` does with prompts: their names, the first pass, how many follow."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flexswitch.merging.switching.batch_rows import first_tensor, row_length
from flexswitch.merging.switching.padding import config_of

_DEFAULT_LENGTH = 20  # the prompt with it


def prompts_by_name(module: Any, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns prompts with `inputs`, as `generate` calls any model's first argument, by its own name."""
    name = getattr(module, "main_input_name", "input_ids")
    return {name if key == "inputs" else key: value for key, value in batch.items()}


def first_pass(module: Any, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns the arguments of a forward pass of prompts; of an encoder-decoder with two tokens of answers.

    Two, as one position is the same in any order of the rows.
    """
    encodes = getattr(config_of(module), "is_encoder_decoder", False)
    if not encodes or any(name.startswith("decoder_input") for name in batch):
        return batch
    first = first_tensor(batch)
    return {**batch, "decoder_input_ids": torch.zeros(len(first), 2, dtype=torch.long, device=first.device)}


def new_tokens(module: Any, batch: Mapping[str, Tensor], options: Mapping[str, Any]) -> int:
    """Returns how many tokens `generate` adds to the prompts of a batch at most."""
    settings = options.get("generation_config") or getattr(module, "generation_config", None)
    count, length = (
        options.get(name, getattr(settings, name, None)) for name in ("max_new_tokens", "max_length")
    )
    if count is None:
        prompt = 0 if getattr(config_of(module), "is_encoder_decoder", False) else row_length(batch)
        count = (length or _DEFAULT_LENGTH) - prompt
    return max(0, int(count) - 1)  # the first is the prompt's pass


def is_greedy(module: Any, options: Mapping[str, Any]) -> bool:
    """Returns whether `generate` gives tokens alone, those of a prompt whatever its place in the batch."""
    settings = getattr(module, "generation_config", None)
    depends = any(
        options.get(name, getattr(settings, name, False)) for name in ("do_sample", "return_dict_in_generate")
    )
    return not depends and all(isinstance(each, int | float | str | None) for each in options.values())
