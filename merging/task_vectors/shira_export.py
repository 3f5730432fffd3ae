"""A task vector as PEFT's sparse adapter: the entries of each linear layer's delta, and where they are.

An adapter of rank r has r · (rows + columns) entries in every layer, as many as a LoRA of that rank. Source:
Bhardwaj et al. 2024, "Sparse High Rank Adapters" (arXiv 2406.13175), section 3.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.task_vectors.peft_adapter import ROOT, Adapted, Adapter, OnTensor
from flexswitch.merging.task_vectors.task_vector import TaskVector, delta_tensor


class Entries(NamedTuple):
    """A layer's delta: its shape, the flat places of its entries, ascending, and their values, float32."""

    shape: tuple[int, int]
    places: NDArray[np.int64]
    values: NDArray[np.float32]

    @property
    def rank(self) -> int:
        """The least rank whose adapter has as many entries."""
        return -(-len(self.places) // sum(self.shape))

    def fits(self, rank: int) -> bool:
        """Returns whether an adapter of that rank is no larger than the layer, as peft demands."""
        return rank * sum(self.shape) <= math.prod(self.shape)


def to_shira(base: Checkpoint, vector: TaskVector, on_tensor: OnTensor = lambda name: None) -> Adapter:
    """Returns a task vector as a sparse adapter, exact in every linear layer that it can hold.

    The rank is the least that holds all entries of every layer that can be held. Raises: InputError if the
    model is not known, or there is no such layer.
    """
    adapted = Adapted(base, vector)
    deltas, norms = _deltas(vector, adapted, on_tensor)
    rank = max((delta.rank for delta in deltas.values()), default=0)
    fitting = {name: delta for name, delta in deltas.items() if delta.fits(rank)}
    if not fitting:
        raise InputError(
            f"{vector.source}: changes no linear layer, or each in more entries than a sparse adapter holds; "
            "export a LoRA"
        )
    tensors: dict[str, Tensor] = {}
    for name, delta in fitting.items():
        stored = f"{ROOT}{adapted.layers[name].module}.shira_"
        indices, values = _filled(delta, rank * sum(delta.shape))
        tensors |= {f"{stored}indices": indices, f"{stored}weight": values}
    kind = {"peft_type": "SHIRA", "mask_type": "random", "fan_in_fan_out": False}
    return adapted.adapter(kind, rank, tensors, dict.fromkeys(fitting, 0.0), norms)


def _deltas(
    vector: TaskVector, adapted: Adapted, on_tensor: OnTensor
) -> tuple[Mapping[str, Entries], Mapping[str, float]]:
    """Returns the entries of each linear layer that some adapter can hold, and the norms of all deltas."""
    deltas: dict[str, Entries] = {}
    norms: dict[str, float] = {}
    for name in vector.tensors:
        on_tensor(name)
        delta = delta_tensor(vector, name)
        norms[name] = float(delta.to(torch.float64).norm())
        layer = adapted.layers.get(name)
        if norms[name] and layer is not None and layer.kind == "linear":
            flat = delta.reshape(-1).numpy()
            places = np.flatnonzero(flat)
            entries = Entries((delta.shape[0], delta.shape[1]), places, flat[places])
            if entries.fits(entries.rank):
                deltas[name] = entries
    return deltas, norms


def _filled(delta: Entries, count: int) -> tuple[Tensor, Tensor]:
    """Returns rows and columns, int32 (2, count), and values, float32 (count), zeros added elsewhere."""
    first = np.arange(min(math.prod(delta.shape), count + len(delta.places)))
    added = np.setdiff1d(first, delta.places, assume_unique=True)[: count - len(delta.places)]
    places = np.concatenate([delta.places, added])
    values = np.concatenate([delta.values, np.zeros(len(added), np.float32)])
    order = np.argsort(places)
    indices = np.stack(np.divmod(places[order], delta.shape[1])).astype(np.int32)
    return torch.from_numpy(indices), torch.from_numpy(values[order])
