"""Splits a batch of texts into parts of similar length, to compute less for padding."""

import torch
from torch import Tensor

from flexswitch.merging.models.examples import Batch


def short_parts(batch: Batch, size: int) -> list[tuple[Tensor, Batch]]:
    """Returns (rows in the batch, part) for parts of up to `size` samples, the shortest texts first.

    A part is cut after its longest text. A batch stays whole if it has at most `size` samples, is padded on
    the left, or has no "attention_mask" (sample, token).
    """
    mask = batch.get("attention_mask")
    if mask is None or mask.dim() != 2 or len(mask) <= size or bool((mask[:, 1:] > mask[:, :-1]).any()):
        return [(torch.arange(len(next(iter(batch.values())))), batch)]
    lengths = mask.sum(1)
    found = []
    for rows in torch.split(torch.argsort(lengths, stable=True), size):
        longest = max(1, int(lengths[rows[-1]]))
        part = {name: _cut(tensor[rows], mask.shape[1], longest) for name, tensor in batch.items()}
        found.append((rows.cpu(), part))
    return found


def _cut(tensor: Tensor, tokens: int, longest: int) -> Tensor:
    return tensor[:, :longest] if tensor.dim() > 1 and tensor.shape[1] == tokens else tensor
