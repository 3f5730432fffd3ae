"""A task vector as a PEFT LoRA: each layer's delta is approximated best by a product of two thin matrices.

Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.task_vectors.peft_adapter import ROOT, Adapted, Adapter, Layer, OnTensor
from flexswitch.merging.task_vectors.singular_triples import Triples, leading_triples
from flexswitch.merging.task_vectors.task_vector import TaskVector, delta_tensor

Rank = int | Literal["auto"]
AUTO_ERROR = 0.1  # the relative error that `auto` allows
_RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def to_lora(
    base: Checkpoint, vector: TaskVector, rank: Rank, on_tensor: OnTensor = lambda name: None
) -> Adapter:
    """Returns a task vector as a LoRA of one rank for all layers.

    rank: "auto" for the least with an error of at most 0.1. Raises: InputError if the model is not known, or
    no layer changed that a LoRA can change.
    """
    adapted = Adapted(base, vector)
    most = _RANKS[-1] if rank == "auto" else rank
    factors, norms = _decompositions(vector, adapted.layers, most, on_tensor)
    if not factors:
        raise InputError(f"{vector.source}: changes no layer that a LoRA can change")
    chosen = _least_rank(factors) if rank == "auto" else rank
    layers, tensors = adapted.layers, dict[str, Tensor]()
    for name, each in factors.items():
        tensors |= _stored(layers[name], each, chosen)
    kind = {
        "peft_type": "LORA",
        "lora_alpha": chosen,
        "fan_in_fan_out": any(layers[name].kind == "transposed" for name in factors),
        "bias": "none",
    }
    missed = {name: each.error(chosen) for name, each in factors.items()}
    return adapted.adapter(kind, chosen, tensors, missed, norms)


def _decompositions(
    vector: TaskVector, layers: Mapping[str, Layer], most: int, on_tensor: OnTensor
) -> tuple[dict[str, Triples], dict[str, float]]:
    """Returns the factors of each layer that changed, and the Frobenius norm of every delta."""
    factors: dict[str, Triples] = {}
    norms: dict[str, float] = {}
    for name in vector.tensors:
        on_tensor(name)
        delta = delta_tensor(vector, name).to(torch.float64)
        norms[name] = float(delta.norm())
        if norms[name] and name in layers:
            factors[name] = leading_triples(delta if layers[name].kind == "linear" else delta.T, most)
    return factors, norms


def _least_rank(factors: Mapping[str, Triples]) -> int:
    """Returns the least of some ranks whose relative error over all layers is at most `AUTO_ERROR`."""
    norm = math.hypot(*(each.error(0) for each in factors.values()))
    for rank in _RANKS:
        if math.hypot(*(each.error(rank) for each in factors.values())) <= AUTO_ERROR * norm:
            return rank
    return _RANKS[-1]


def _stored(layer: Layer, factors: Triples, rank: int) -> dict[str, Tensor]:
    """Returns A (rank, in) and B (out, rank), float32, by their stored names; B A approximates the delta."""
    roots = factors.values[:rank].sqrt()
    a, b = roots[:, None] * factors.right[:rank], factors.left[:, :rank] * roots
    missing = rank - len(roots)  # a delta smaller than the rank
    a = torch.nn.functional.pad(a, (0, 0, 0, missing)).to(torch.float32).contiguous()
    b = torch.nn.functional.pad(b, (0, missing)).to(torch.float32).contiguous()
    if layer.kind == "embedding":
        return {f"{ROOT}{layer.module}.lora_embedding_A": a, f"{ROOT}{layer.module}.lora_embedding_B": b}
    return {f"{ROOT}{layer.module}.lora_A.weight": a, f"{ROOT}{layer.module}.lora_B.weight": b}
