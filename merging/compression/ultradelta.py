"""UltraDelta: entries drawn in each group of equal levels, fewer in tensors of small variance.

Source: Wang et al. 2025, "Breaking the Compression Ceiling: Data-Free Pipeline for Ultra-Efficient Delta
Compression" (arXiv 2505.13563), section 3, and its released code; docs/methods.md §6.26.
"""

import math
from collections.abc import Mapping
from functools import partial as bind
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from flexswitch.codecs.compiled import compiled
from flexswitch.codecs.draws import seeded_generator
from flexswitch.codecs.errors import UsageError
from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.threads import DEFAULT_MEMORY, map_in_order
from flexswitch.merging.compression.delta import Compressed, Delta, assemble
from flexswitch.merging.compression.low_rank import Others, kept_or_left_out
from flexswitch.merging.compression.plan import Job, Plan
from flexswitch.merging.task_vectors.task_vector import TaskVector

Counts = NDArray[np.int64]
Levels = NDArray[np.uint8]

_OTHER_BITS = 16
_COUNTED_BYTES = 1 << 23  # of a tensor that is counted: a block, its levels, and their steps in float64
_LARGEST = float(np.finfo(np.float32).max)


class _Grid(NamedTuple):
    """A tensor's largest magnitude, and how many of its changed entries have each level, (2^bits,)."""

    largest: float
    counts: Counts

    @property
    def changed(self) -> int:
        return int(self.counts.sum())

    def deviation(self) -> float:
        """Returns the standard deviation of the quantised entries, those that did not change left out."""
        steps, changed = len(self.counts) - 1, self.changed
        values = self.largest * (2 * np.arange(steps + 1) - steps) / steps
        mean = float(self.counts @ values) / changed
        return math.sqrt(float(self.counts @ (values - mean) ** 2) / changed)


def ultradelta(
    vector: TaskVector,
    job: Job,
    *,
    drop: Annotated[float, Field(ge=0, lt=1, description="Share of the changed entries to drop.")] = 0.97,
    step: Annotated[
        float,
        Field(ge=0, lt=1, description="By how much more is dropped in the third of least variance."),
    ] = 0.01,
    bits: Annotated[int, Field(ge=1, le=8, description="Bits of a level.")] = 4,
    gamma: Annotated[
        float, Field(gt=0, le=1, description="Factor of the scale beside 1 / (1 − drop).")
    ] = 1.0,
    seed: Annotated[int, Field(description="Seed of the mask, with the task's and tensors' names.")] = 0,
    others: Others = "keep",
) -> Plan:
    """Returns the plan that drops entries by chance, equally many of each level, and enlarges what is left.

    Levels are evenly spaced from −max|τ| to max|τ|. Entries that did not change stay so and do not count.
    Tensors that are no matrices are kept as bfloat16. The task vector is read twice before.
    Raises: UsageError where an enlarged value is beyond float32; InputError.
    """
    matrices = [name for name, info in vector.tensors.items() if len(info.shape) > 1]
    work = bind(_grid, vector, 1 << bits)
    made = map_in_order(work, matrices, job.jobs, lambda name: _COUNTED_BYTES, DEFAULT_MEMORY)
    grids = {name: grid for name, grid in zip(matrices, made, strict=True) if grid.changed}
    enlarged = gamma / (1 - drop)
    for name, grid in grids.items():
        if grid.largest * enlarged > _LARGEST:
            raise UsageError(
                f"{vector.source}: tensor '{name}': its change of {grid.largest:g}, enlarged by "
                f"gamma={gamma:g} / (1 − drop={drop:g}), is beyond float32; lower drop or gamma"
            )
    rates = drop_rates({name: (grid.deviation(), grid.changed) for name, grid in grids.items()}, drop, step)

    def compress(delta: Delta) -> Compressed:
        if len(delta.shape) < 2:
            return kept_or_left_out(delta, others, _OTHER_BITS)
        if delta.name not in grids:
            return kept_or_left_out(delta, "drop", _OTHER_BITS)
        grid, rate = grids[delta.name], rates[delta.name]
        left = grid.counts - np.array([round(count * rate) for count in grid.counts.tolist()], np.int64)
        return _drawn(delta, grid, left, seed, float(np.float32(grid.largest * enlarged)))

    return Plan(compress)


def drop_rates(tensors: Mapping[str, tuple[float, int]], drop: float, step: float) -> dict[str, float]:
    """Returns which share of each tensor is dropped; tensors: name → standard deviation, number of entries.

    In rising order of the deviation, tensors up to a third of all entries drop + step; those up to two thirds
    drop; of the others so much is dropped that it is `drop` in all. Every share is held between 0 and 1.
    """
    total = sum(count for _, count in tensors.values())
    rates, passed, dropped, rest = dict[str, float](), 0, 0.0, 0
    for name in sorted(tensors, key=lambda name: tensors[name][0]):
        count = tensors[name][1]
        passed += count
        if 3 * passed > 2 * total:
            rest += count
            continue
        rates[name] = min(1.0, drop + step) if 3 * passed <= total else drop
        dropped += rates[name] * count
    last = min(1.0, max(0.0, (drop * total - dropped) / rest)) if rest else drop
    return {name: rates.get(name, last) for name in tensors}


def _grid(vector: TaskVector, levels: int, name: str) -> _Grid:
    largest = max((float(np.abs(block).max()) for block in vector.blocks(name)), default=0.0)
    counts = np.zeros(levels, np.int64)
    if largest:
        for block in vector.blocks(name):
            counts += np.bincount(_levels(block, largest, levels)[block != 0], minlength=levels)
    return _Grid(largest, counts)


def _levels(block: FloatArray, largest: float, levels: int) -> Levels:
    steps = levels - 1
    return np.minimum(np.floor((block.astype(np.float64) / largest * steps + steps) / 2 + 0.5), steps).astype(
        np.uint8
    )


def _drawn(delta: Delta, grid: _Grid, left: Counts, seed: int, scale: float) -> Compressed:
    """Returns the tensor with so many entries of each level kept, each choice of them as likely."""
    generator = seeded_generator(seed, delta.task, delta.name)
    masks, kept_levels = [], []
    counts, wanted = grid.counts.copy(), left.copy()
    for block in delta.read():
        levels, kept = _levels(block, grid.largest, len(counts)), block != 0
        _select(levels, generator.random_raw(len(block)), counts, wanted, kept)
        masks.append(np.packbits(kept, bitorder="little"))
        kept_levels.append(levels[kept])
    bits = len(counts).bit_length() - 1
    return Compressed(assemble(delta.shape, masks, kept_levels, bits), scale)


@compiled
def _select(
    levels: Levels, draws: NDArray[np.uint64], counts: Counts, wanted: Counts, kept: NDArray[np.bool_]
) -> None:
    """Unmarks the changed entries that are dropped; counts and wanted: what is left of each level.

    Source: Knuth, The Art of Computer Programming 2, 3.4.2, algorithm S.
    """
    for index in range(levels.size):
        if kept[index]:
            level = levels[index]
            share = np.float64(draws[index] >> np.uint64(11)) * 2.0**-53
            if share * counts[level] < wanted[level]:
                wanted[level] -= 1
            else:
                kept[index] = False
            counts[level] -= 1
