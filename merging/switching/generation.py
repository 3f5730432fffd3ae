"""What transformers' `generate` does with prompts: their names, its passes and settings."""

from collections.abc import Mapping
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from flexswitch.merging.switching.batch_rows import row_length
from flexswitch.merging.switching.padding import config_of

_DEFAULT_LENGTH = 20  # the prompt with it
_OF_LATER_TOKENS = {
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time", "stop_strings", "streamer",
    "stopping_criteria", "logits_processor", "prefix_allowed_tokens_fn", "assistant_model",
}  # fmt: skip


def prompts_by_name(module: Any, batch: Any) -> Mapping[str, Tensor]:
    """Returns prompts with `inputs`, as `generate` calls any model's first argument, by its own name.

    batch: a tensor is that argument.
    """
    name = getattr(module, "main_input_name", "input_ids")
    if isinstance(batch, Tensor):
        return {name: batch}
    return {name if key == "inputs" else key: value for key, value in batch.items()}


def with_options_of_rows(
    batch: Mapping[str, Tensor], options: Mapping[str, Any], count: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the arguments of `generate` that have rows, such as a mask in the options, and the others."""
    tensors = {name: value for name, value in options.items() if isinstance(value, Tensor)}
    own = {name: value for name, value in tensors.items() if value.shape[:1] == (count,)}
    return {**batch, **own}, {name: value for name, value in options.items() if name not in own}


def forward_passes(module: Any, batch: Mapping[str, Tensor], options: Mapping[str, Any]) -> list[Any]:
    """Returns the outputs of the module's first forward passes in a `generate`, whose tokens are given.

    Two, but one where there are several sequences of a prompt, and near ties would be decided by rounding.
    """
    thread, outputs = get_ident(), []

    def note(_: object, __: object, output: Any) -> None:
        if get_ident() == thread:
            outputs.append(output)

    own = {name: value for name, value in options.items() if name not in _OF_LATER_TOKENS}
    if sequences(module, options) == 1:
        names = ("eos_token_id", "suppress_tokens", "begin_suppress_tokens")
        others = [_setting(module, options, name) for name in names]
        refused = {token for other in others for token in (other if isinstance(other, list) else [other])}
        token = next(token for token in range(len(refused) + 1) if token not in refused)
        own["prefix_allowed_tokens_fn"] = lambda _, __: [token]
    is_exact = next((each.dtype for each in module.parameters()), torch.float32).itemsize > 2
    tokens = 2 if sequences(module, options) == 1 or is_exact else 1
    handle = module.register_forward_hook(note)
    try:
        module.generate(**batch, **own, max_new_tokens=min(tokens, 1 + new_tokens(module, batch, options)))
    finally:
        handle.remove()
    return outputs


def sequences(module: Any, options: Mapping[str, Any]) -> int:
    """Returns how many rows `generate` makes of each prompt."""
    counts = (_setting(module, options, name) for name in ("num_beams", "num_return_sequences"))
    return max(count or 1 for count in counts)


def padding_token(module: Any, options: Mapping[str, Any]) -> int:
    """Returns the token that `generate` puts after the end of a sequence."""
    own = _setting(module, options, "pad_token_id")
    end = _setting(module, options, "eos_token_id") if own is None else own
    return int(end[0] if isinstance(end, list) else end or 0)


def _setting(module: Any, options: Mapping[str, Any], name: str) -> Any:
    """Returns a setting of `generate`, from its options, its configuration or the module's."""
    places = options.get("generation_config"), getattr(module, "generation_config", None)
    found = (getattr(place, name, None) for place in places)
    return options.get(name, next((value for value in found if value is not None), None))


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
