"""Means of the tokens' hidden states; only the layers that they need are run."""

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.merging.models.examples import Batch
from flexswitch.merging.models.length_buckets import short_parts
from flexswitch.merging.models.scored_tokens import model_inputs

_PART_SIZE = 16  # samples that are padded to the same length


def layer_means(module: nn.Module, batch: Batch, layers: Sequence[int]) -> Tensor:
    """Returns the layers' means over the tokens that are not padding, (sample, width · layers) float32.

    Layer N is transformers' `hidden_states[N]`: 0 is the embeddings, N the output of the N-th layer. Only the
    embeddings and the first max(layers) layers are run; a model that does not keep its layers in one list is
    run completely. The module is not changed, so other threads may use it at the same time.
    Raises: UsageError on a layer that the model lacks; InputError if the module has no transformers model.
    """
    body, batch = _body(module), _body_inputs(batch)
    path = _path_of_layers(body)
    last = max(layers)
    if path is not None and last < len(body.get_submodule(path)):
        states = _first_states(body, path, batch, last)
    else:
        states = body(**batch, output_hidden_states=True).get("hidden_states") or []
    if last >= len(states):
        raise UsageError(
            f"features 'layer:{last}': the base has layer:0 (embeddings) … layer:{len(states) - 1}"
        )
    mask = batch.get("attention_mask")
    return torch.cat([mean_pool(states[layer].float(), mask) for layer in layers], 1)


def pooled_mean(module: nn.Module, batch: Batch) -> Tensor:
    """Returns the last hidden state's mean over tokens that are not padding, (sample, width) float32."""
    hidden: Tensor = _body(module)(**_body_inputs(batch)).last_hidden_state
    return mean_pool(hidden.float(), batch.get("attention_mask"))


def in_short_parts(batch: Batch, means: Callable[[Batch], Tensor]) -> Tensor:
    """Returns `means` of a batch, (sample, width), computed on parts of similar length to save padding."""
    parts = short_parts(batch, _PART_SIZE)
    if len(parts) == 1:
        return means(batch)
    return torch.cat([means(part) for _, part in parts])[
        torch.argsort(torch.cat([rows for rows, _ in parts]))
    ]


def layer_count(module: nn.Module) -> int:
    """Returns the number of a model's layers, the largest N that `layer_means` takes."""
    return int(_body(module).config.get_text_config().num_hidden_layers)


def has_layers(module: nn.Module) -> bool:
    """Returns whether a model tells the hidden states of its layers: no decoder of pictures does."""
    body = _body(module)
    return not body.config.is_encoder_decoder or body.main_input_name == "input_ids"


def mean_pool(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the mean over the tokens that `mask` (sample, token) selects, (sample, width)."""
    if mask is None:
        return hidden.mean(1)
    weights = mask.unsqueeze(-1).to(hidden.dtype)  # (sample, token, 1)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)  # a text may have no tokens


def _body(module: nn.Module) -> Any:
    """Returns the first transformers model in a module, without its head; of an encoder-decoder the encoder.

    Raises: InputError.
    """
    loaded: Any = sys.modules.get("transformers")  # it is, where a model is of it
    for each in module.modules() if loaded is not None else ():
        if isinstance(each, loaded.PreTrainedModel):
            reads_texts = each.main_input_name == "input_ids"
            return each.get_encoder() if each.config.is_encoder_decoder and reads_texts else each.base_model
    raise InputError(
        f"features of layers need a transformers model, but {type(module).__name__} contains none; "
        "give --features pooled"
    )


def _body_inputs(batch: Batch) -> Batch:
    """Returns the tensors of a batch that a model without its head and its decoder takes."""
    return {name: tensor for name, tensor in model_inputs(batch).items() if not name.startswith("decoder_")}


def _path_of_layers(body: Any) -> str | None:
    """Returns the path of the list of a model's layers, or None if there is no such list or several."""
    count = getattr(body.config, "num_hidden_layers", None)
    found = [
        path for path, each in body.named_modules() if isinstance(each, nn.ModuleList) and len(each) == count
    ]
    outermost = [path for path in found if not any(path.startswith(f"{other}.") for other in found)]
    return outermost[0] if len(outermost) == 1 else None


class _ReachedError(Exception):
    """Stops the forward pass at the last layer whose input is needed."""


def _first_states(body: Any, path: str, batch: Batch, last: int) -> list[Tensor]:
    """Returns the inputs of layers 0 … last, each (sample, token, width); layer `last` is not run."""
    states: list[Tensor] = []

    def record_input(layer: nn.Module, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        states.append(args[0] if args else keywords["hidden_states"])
        if len(states) > last:
            raise _ReachedError

    try:
        _with_hooks(body, path, last, record_input)(**batch)
    except _ReachedError:
        return states
    raise RuntimeError(f"{type(body).__name__} finished without calling layer {last} of '{path}'")


def _with_hooks(body: Any, path: str, last: int, note: Any) -> Any:
    """Returns a model with the same parameters that calls `note` before each layer up to `last`.

    The modules from the model down to its layers are shallow copies, so the model itself gets no hooks.
    """
    layers = body.get_submodule(path)
    hooked = []
    for layer in layers[: last + 1]:
        twin = copy(layer)
        twin._forward_pre_hooks = OrderedDict(layer._forward_pre_hooks)
        twin._forward_pre_hooks_with_kwargs = OrderedDict(layer._forward_pre_hooks_with_kwargs)
        twin.register_forward_pre_hook(note, with_kwargs=True)
        hooked.append(twin)
    made: nn.Module = nn.ModuleList([*hooked, *layers[last + 1 :]])
    names = path.split(".")
    for depth in reversed(range(len(names))):
        outer = copy(body.get_submodule(".".join(names[:depth])))
        outer._modules = {**outer._modules, names[depth]: made}
        made = outer
    return made
