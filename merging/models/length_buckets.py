"""Splits a batch of texts into parts of similar length, to compute less for padding."""

import torch
from torch import Tensor

from flexswitch.merging.models.examples import Batch
from flexswitch.merging.models.scored_tokens import LOSS_MASK

# Names of tensors with a column for each token of an encoder-decoder's target.
_OF_TARGETS = ("decoder_", LOSS_MASK)


def short_parts(batch: Batch, size: int) -> list[tuple[Tensor, Batch]]:
    """Returns (rows in the batch, part) for parts of up to `size` samples, the shortest texts first.

    A part is cut after its longest text, what is of a decoder after its longest target. A batch stays whole
    if it has at most `size` samples, is padded on the left, or has no "attention_mask" (sample, token).
    """
    mask = batch.get("attention_mask")
    if mask is None or mask.dim() != 2 or len(mask) <= size or bool((mask[:, 1:] > mask[:, :-1]).any()):
        return [(torch.arange(len(next(iter(batch.values())))), batch)]
    targets = batch.get("decoder_attention_mask")
    found = []
    for rows in torch.split(torch.argsort(mask.sum(1), stable=True), size):
        part = {name: tensor[rows] for name, tensor in batch.items()}
        of_targets = {name for name in part if targets is not None and name.startswith(_OF_TARGETS)}
        for names, own in ((part.keys() - of_targets, mask), (of_targets, targets)):
            if own is not None:
                longest = max(1, int(own[rows].sum(1).max()))
                part |= {name: _cut(part[name], own.shape[1], longest) for name in names}
        found.append((rows.cpu(), {name: part[name] for name in batch}))
    return found


def _cut(tensor: Tensor, tokens: int, longest: int) -> Tensor:
    return tensor[:, :longest] if tensor.dim() > 1 and tensor.shape[1] == tokens else tensor
