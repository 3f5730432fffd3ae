"""The tensors that an artifact stores exactly, decoded by the numbers of its base."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.exact_forms import block_shapes
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.dtypes import TORCH_DTYPES
from flexswitch.merging.task_vectors.difference import difference
from flexswitch.merging.task_vectors.task_vector import block_ranges


class ExactBlock(NamedTuple):
    """A run of a tensor's entries: its start, the base's numbers and the fine-tuned ones, each flat."""

    start: int
    base: Tensor
    finetuned: Tensor


def stored_ranges(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yields [start, stop) of each block in which a tensor of a shape is stored exactly."""
    start = 0
    for rows, columns in block_shapes(shape):
        yield start, start + rows * columns
        start += rows * columns


def number_bytes(numbers: Tensor, dtype: str) -> bytes:
    """Returns numbers as bytes, rounded to the nearest of a dtype if they are of another one."""
    return numbers.to(TORCH_DTYPES[dtype]).contiguous().view(torch.uint8).numpy().tobytes()


def exact_blocks(artifact: Artifact, base: Checkpoint, name: str) -> Iterator[ExactBlock]:
    """Yields the blocks in which a tensor is stored. Raises: DecodeError, also where the base is another."""
    record = artifact.header.exact[name]
    for index, (start, stop) in enumerate(stored_ranges(tuple(record.shape))):
        numbers = base.read(name, start, stop)
        found = artifact.exact_block(name, index, number_bytes(numbers, record.dtype))
        yield ExactBlock(start, numbers, torch.frombuffer(bytearray(found), dtype=TORCH_DTYPES[record.dtype]))


def exact_numbers(artifact: Artifact, base: Checkpoint, name: str) -> Iterator[Tensor]:
    """Yields the fine-tuned numbers of a tensor, flat. Raises: DecodeError."""
    return (block.finetuned for block in exact_blocks(artifact, base, name))


def exact_delta(
    artifact: Artifact, base: Checkpoint, name: str, size: int | None = None
) -> Iterator[FloatArray]:
    """Yields a tensor's delta as flat float32 blocks of `size` entries, the last one shorter.

    Raises: DecodeError; InputError if it is not finite.
    """
    record, waiting = artifact.header.exact[name], np.empty(0, np.float32)
    stored = exact_blocks(artifact, base, name)
    for start, stop in block_ranges(record.entries, size):
        while len(waiting) < stop - start:
            block = next(stored)
            delta, finite = difference(block.base, block.finetuned)
            if not finite:
                raise InputError(
                    f"{artifact.path}: tensor '{name}' minus the base's is not finite near entry "
                    f"{block.start:,}; `merge --task` restores it, but nothing else can be made of it"
                )
            waiting = np.concatenate([waiting, delta])
        yield waiting[: stop - start]
        waiting = waiting[stop - start :]
