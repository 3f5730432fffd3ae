"""A task as a patch of the base's weights: the entries that differ, as servers that update weights take them.

vLLM's `SparseWeightPatch` has a checkpoint's tensor name, its full shape, flat int32 indices and the values
to put there.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.task_vectors.restore import restored_tensors
from flexswitch.merging.task_vectors.task_vector import TaskVector

_MOST_ENTRIES = 1 << 31


class TensorPatch(NamedTuple):
    """What changes in one tensor.

    name: as in the base's checkpoint. shape: of the whole tensor. indices: flat, int32 and ascending; None
    where the base lacks the tensor, or has it in another shape. values: the new ones, in the restored dtype.
    """

    name: str
    shape: tuple[int, ...]
    indices: Tensor | None
    values: Tensor


def weight_patch(base: Checkpoint, vector: TaskVector) -> Iterator[TensorPatch]:
    """Yields the patch of each tensor that differs from the base's, in name order.

    Raises: InputError if a tensor is too large for int32 indices.
    """
    own_names = {vector.model.finetuned_name(name): name for name in base.tensors}
    aliases = {vector.model.finetuned_name(name) for name in base.aliases}
    for name, output in restored_tensors(base, vector, 1.0, None).items():
        if name in aliases:
            continue  # the same tensor under another name
        own = own_names.get(name)
        if own is None or name in vector.extras:
            yield TensorPatch(own or name, output.info.shape, None, output.whole())
            continue
        if output.info.entries >= _MOST_ENTRIES:
            raise InputError(
                f"{base.source}: tensor '{own}' has {output.info.entries:,} entries, expected below 2^31"
            )
        found, before = output.whole().reshape(-1), base.read(own)
        if found.dtype != before.dtype:
            yield TensorPatch(own, output.info.shape, None, found.reshape(output.info.shape))
            continue
        indices = torch.nonzero(_bits(found) != _bits(before)).reshape(-1)
        if len(indices):
            yield TensorPatch(own, output.info.shape, indices.to(torch.int32), found[indices])


def _bits(tensor: Tensor) -> Tensor:
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(kinds[tensor.element_size()])
