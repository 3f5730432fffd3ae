"""Which tokens of a language model's batch are scored, and which token should follow each.

The logits of an encoder-decoder are of the decoder's tokens: tensors whose names start with "decoder_".
"""

import torch
from torch import Tensor

from flexswitch.merging.models.examples import Batch

LOSS_MASK = "loss_mask"


def scored_tokens(batch: Batch) -> Tensor:
    """Returns which logits count, (sample, token) bool: by "loss_mask", or all but those of padding."""
    tokens, mask = _tokens(batch)
    if LOSS_MASK in batch:
        return batch[LOSS_MASK] != 0
    return torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask != 0


def next_tokens(batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns the tokens that follow the scored ones, (scored token,), and whether there is one, the same.

    Nothing follows the last token of a text.
    """
    tokens, mask = _tokens(batch)
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask != 0
    chosen = scored_tokens(batch)
    follows = torch.zeros_like(chosen)
    follows[:, :-1] = real[:, 1:] & real[:, :-1]
    return tokens.roll(-1, 1)[chosen], follows[chosen]


def model_inputs(batch: Batch) -> Batch:
    """Returns the tensors of a batch that the model takes."""
    return {name: tensor for name, tensor in batch.items() if name != LOSS_MASK}


def _tokens(batch: Batch) -> tuple[Tensor, Tensor | None]:
    prefix = "decoder_" if "decoder_input_ids" in batch else ""
    return batch[f"{prefix}input_ids"], batch.get(f"{prefix}attention_mask")
