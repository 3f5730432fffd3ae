"""EMR-Merging: elect one vector, and of each task store the mask of the signs it shares and one scale.

Source: Huang et al. 2024, "EMR-Merging" (arXiv 2405.17461), section 3; docs/methods.md §6.30.
"""

from functools import partial as bind
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.threads import map_in_order
from flexswitch.merging.shared.form import Bits, Compress, SharedForm
from flexswitch.merging.shared.values import masked, stored_in
from flexswitch.merging.static.task_deltas import Block, Combination, TensorDeltas, weighted_sum
from flexswitch.merging.task_vectors.task_vector import TaskVector

Rescale = Literal["tensors", "entries"]


def emr(
    *,
    rescale: Annotated[
        Rescale,
        Field(
            description="What a task's scale keeps: the sum of the tensors' mean magnitudes, as in the "
            "paper's code, or that of all entries, as in its text."
        ),
    ] = "tensors",
    shared_bits: Bits = 32,
) -> SharedForm:
    """Returns the form whose shared vector has the elected signs and their largest magnitudes."""

    def own(vector: TaskVector, shared: TaskVector, jobs: int) -> Compress:
        return bind(masked, shared=shared, keep=_agrees, scale=_scale(vector, shared, rescale, jobs))

    return SharedForm("product", _unify, stored_in(shared_bits), own)


def _unify(deltas: TensorDeltas) -> Combination:
    return Combination(_elected)


def _elected(block: Block) -> Tensor:
    """Returns the largest magnitude of the elected sign, with it; where the sum is 0, the sign is −."""
    positive = weighted_sum(block.deltas, [1.0] * len(block.deltas)) > 0
    highest = block.deltas.amax(0).clamp(min=0)
    lowest = block.deltas.amin(0).clamp(max=0)
    return torch.where(positive, highest, lowest)


def _agrees(delta: FloatArray, shared: FloatArray) -> NDArray[np.bool_]:
    agrees: NDArray[np.bool_] = ((delta > 0) & (shared > 0)) | ((delta < 0) & (shared < 0))
    return agrees


def _scale(vector: TaskVector, shared: TaskVector, rescale: Rescale, jobs: int) -> float:
    """Returns by how much the masked vector is multiplied, so that its magnitudes are the task's."""

    def magnitudes(name: str) -> NDArray[np.float64]:
        sums = np.zeros(2)
        if name not in shared.tensors:
            sums[0] = sum(np.abs(block).sum(dtype=np.float64) for block in vector.blocks(name))
        else:
            for block, values in zip(vector.blocks(name), shared.blocks(name), strict=True):
                taken = np.abs(values)[_agrees(block, values)]
                sums += np.abs(block).sum(dtype=np.float64), taken.sum(dtype=np.float64)
        return sums / (max(1, vector.tensors[name].entries) if rescale == "tensors" else 1)

    own, taken = 0.0, 0.0
    for tensor in map_in_order(magnitudes, vector.tensors, jobs):
        own, taken = own + float(tensor[0]), taken + float(tensor[1])
    return float(np.float32(own / taken)) if taken > 0 else 1.0
