"""Batches whose texts are padded on the left, as for generation, with the padding on the right."""

import torch

from flexswitch.merging.models.examples import Batch


def right_padded(batch: Batch) -> Batch:
    """Returns a batch with each text at the start of its row, whatever side it was padded on.

    Models that count positions from the start of a row then give a text the states that it has alone.
    """
    mask = batch.get("attention_mask")
    if mask is None or mask.dim() != 2 or not mask.numel() or bool(mask[:, 0].all()):
        return batch
    places = torch.arange(mask.shape[1], device=mask.device)
    places = (places + (mask != 0).int().argmax(1, keepdim=True)) % mask.shape[1]  # (row, token)
    return {
        name: tensor.gather(1, places.to(tensor.device)) if tensor.shape == mask.shape else tensor
        for name, tensor in batch.items()
    }
