"""ComPEFT: the signs of the largest entries of the whole model, all under one scale.

Source: Yadav et al. 2023, "ComPEFT: Compression for Communicating Parameter Efficient Updates via
Sparsification and Quantization" (arXiv 2311.13171); docs/methods.md §6.18.
"""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial as bind
from typing import Annotated, TypeVar

import numpy as np
from pydantic import Field

from flexswitch.codecs.errors import UsageError
from flexswitch.codecs.order_statistics import Integers, locate, lower_histogram, threshold, upper_histogram
from flexswitch.codecs.sums import Doubles, steady_sum
from flexswitch.codecs.threads import DEFAULT_MEMORY, map_in_order
from flexswitch.merging.compression.delta import Compressed, Delta, assemble
from flexswitch.merging.compression.magnitude import reaching
from flexswitch.merging.compression.plan import Job, Plan
from flexswitch.merging.task_vectors.task_vector import TaskVector

_LARGEST = float(np.finfo(np.float32).max)
_HISTOGRAM_BYTES = 1 << 21  # what a tensor that is counted takes: one histogram, and a block or two

Found = TypeVar("Found")


def compeft(
    vector: TaskVector,
    job: Job,
    *,
    density: Annotated[float, Field(gt=0, le=1, description="Share of all entries to keep.")] = 0.05,
    alpha: Annotated[
        float, Field(gt=0, description="Scale over the task vector's standard deviation.")
    ] = 1.0,
) -> Plan:
    """Returns the plan that keeps signs under the scale alpha · std(τ), over all tensors as one flat vector.

    Of its d entries, unchanged ones too, the ⌊density · d⌋ largest in magnitude are kept, and all that equal
    the smallest of them, but no zeros. The deviation is that of all d entries from their mean: the sum of
    squares is divided by d. The task vector is read twice.
    Raises: UsageError where the scale is beyond float32.
    """
    counts, total = np.zeros(1 << 15, np.int64), 0.0
    for magnitudes, part in _each(vector, job, bind(_count, vector)):
        counts, total = counts + magnitudes, total + part
    mean = total / max(1, vector.parameters)
    wanted = min(math.floor(Fraction(str(density)) * vector.parameters), int(counts.sum()))
    place = locate(counts, wanted)
    listed = sum(info.entries for info in vector.tensors.values())
    lower, squares = np.zeros(1 << 16, np.int64), (vector.parameters - listed) * mean**2
    for inner, part in _each(vector, job, bind(_count_inside, vector, place.bin if place else -1, mean)):
        lower, squares = lower + inner, squares + part
    scale = alpha * math.sqrt(squares / max(1, vector.parameters))
    if scale > _LARGEST:
        raise UsageError(f"alpha={alpha}: times the deviation of {scale / alpha:g} it is beyond float32")
    return Plan(bind(_signs, threshold(place, lower), float(np.float32(scale))))


def _each(vector: TaskVector, job: Job, work: Callable[[str], Found]) -> Iterator[Found]:
    """Yields what comes of each tensor, in their order, whatever the number of threads."""
    return map_in_order(work, vector.tensors, job.jobs, lambda name: _HISTOGRAM_BYTES, DEFAULT_MEMORY)


def _count(vector: TaskVector, name: str) -> tuple[Integers, float]:
    """Returns how many entries have each upper 15 bits of the magnitude, and the sum of all."""
    counts = np.zeros(1 << 15, np.int64)

    def terms() -> Iterator[Doubles]:
        for block in vector.blocks(name):
            np.add(counts, upper_histogram([block]).sum(axis=0), out=counts)
            yield block.astype(np.float64)

    return counts, steady_sum(terms())


def _count_inside(vector: TaskVector, upper: int, mean: float, name: str) -> tuple[Integers, float]:
    """Returns how many entries of one bin have each lower 16 bits, and the sum of squares around the mean."""
    counts = np.zeros(1 << 16, np.int64)

    def terms() -> Iterator[Doubles]:
        for block in vector.blocks(name):
            np.add(counts, lower_histogram([block], (upper, upper)).sum(axis=0), out=counts)
            yield (block.astype(np.float64) - mean) ** 2

    return counts, steady_sum(terms())


def _signs(least: float, scale: float, delta: Delta) -> Compressed:
    masks, signs = [], []
    for block in delta.read():
        mask, values = reaching(block, least, least)
        masks.append(mask)
        signs.append((values > 0).view(np.uint8))
    return Compressed(assemble(delta.shape, masks, signs, bits=1), scale)
