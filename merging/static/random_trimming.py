"""Keeps entries of a delta by chance, and scales those that are kept so that the expected value stays.

What is drawn depends on the seed, the task and the tensor's name alone. Source: docs/methods.md §6.4, §6.5.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from flexswitch.codecs.draws import seeded_generator
from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.sums import Doubles, steady_sum
from flexswitch.merging.static.task_deltas import TensorDeltas

Rescale = Annotated[
    Literal["probability", "l1", "none"],
    Field(description="Divide a kept entry by its probability, or scale each tensor to its L1 norm before."),
]
Seed = Annotated[int, Field(description="Seed of the draws, with the task's and tensor's names.")]

_NO_NORM = 1e-7  # mergekit leaves a tensor of a smaller L1 norm as it is


def drawn_uniformly(
    deltas: TensorDeltas, task: int, blocks: Iterable[FloatArray], density: float, seed: int, rescale: str
) -> Iterator[FloatArray]:
    """Yields the blocks with each entry kept with the probability `density`."""
    share = float(density)
    last = math.ceil(Fraction(str(density)) * (1 << 64)) - 1

    def drawn(blocks: Iterable[FloatArray]) -> Iterator[FloatArray]:
        generator = seeded_generator(seed, deltas.model.tasks[task], deltas.name)
        for block in blocks:
            kept = generator.random_raw(len(block)) <= np.uint64(max(0, last))
            yield np.where(kept & (last >= 0), block, np.float32(0))

    if rescale == "l1":
        factor = _l1_factor(lambda: deltas.task_blocks(task), drawn)
    else:
        factor = 1 / share if rescale == "probability" and share > 0 else 1.0
    for block in drawn(blocks):
        yield (block * factor).astype(np.float32)


def drawn_by_rank(
    deltas: TensorDeltas,
    task: int,
    blocks: Iterable[FloatArray],
    density: float,
    epsilon: float,
    seed: int,
    rescale: str,
) -> Iterator[FloatArray]:
    """Yields the blocks with entries kept more probably the higher they rank by magnitude in their row.

    The probability rises from density − epsilon at the smallest entry of a row to density + epsilon at the
    largest; of equal entries the later one ranks higher. A row of one entry has the probability `density`.
    """

    def drawn(blocks: Iterable[FloatArray], divide: bool) -> Iterator[FloatArray]:
        generator = seeded_generator(seed, deltas.model.tasks[task], deltas.name)
        columns = deltas.entries // deltas.shape[0] if len(deltas.shape) > 1 else deltas.entries
        for rows in _whole_rows(blocks, columns):  # (row, column)
            chance = _chances(rows, density, epsilon)
            kept = generator.random_raw(rows.size).reshape(rows.shape) < chance * 2.0**64
            values = rows / chance if divide else rows
            yield np.where(kept, values, 0).astype(np.float32).reshape(-1)

    factor = 1.0
    if rescale == "l1":
        factor = _l1_factor(lambda: deltas.task_blocks(task), lambda blocks: drawn(blocks, False))
    for block in _as_read(drawn(blocks, rescale == "probability"), deltas.model.block_entries):
        yield (block * factor).astype(np.float32)


def _chances(rows: FloatArray, density: float, epsilon: float) -> NDArray[np.float64]:
    """Returns the probability of each entry, (row, column)."""
    ranks = np.argsort(np.argsort(np.abs(rows), axis=1, kind="stable"), axis=1, kind="stable")
    places = ranks / (rows.shape[1] - 1) if rows.shape[1] > 1 else np.full(rows.shape, 0.5)
    chances: NDArray[np.float64] = (density - epsilon) + 2 * epsilon * places
    return chances


def _whole_rows(blocks: Iterable[FloatArray], columns: int) -> Iterator[FloatArray]:
    """Yields the entries of blocks as whole rows, (row, column)."""
    waiting, held = [np.empty(0, np.float32)], 0
    for block in blocks:
        waiting.append(block)
        held += len(block)
        if held >= columns:
            joined = np.concatenate(waiting)
            whole = held // columns * columns
            yield joined[:whole].reshape(-1, columns)
            waiting, held = [joined[whole:]], held - whole


def _as_read(blocks: Iterable[FloatArray], size: int) -> Iterator[FloatArray]:
    """Yields the entries of blocks in blocks of `size` entries, the last one shorter."""
    waiting = np.empty(0, np.float32)
    for block in blocks:
        waiting = np.concatenate([waiting, block])
        whole = len(waiting) // size * size
        for start in range(0, whole, size):
            yield waiting[start : start + size]
        waiting = waiting[whole:]
    if len(waiting):
        yield waiting


def _l1_factor(
    read: Callable[[], Iterable[FloatArray]], drawn: Callable[[Iterable[FloatArray]], Iterable[FloatArray]]
) -> float:
    """Returns the L1 norm of a tensor's delta over that of its kept entries, or 1 where one is about zero."""

    def norm(blocks: Iterable[FloatArray]) -> float:
        magnitudes: Iterator[Doubles] = (np.abs(block).astype(np.float64) for block in blocks)
        return steady_sum(magnitudes)

    before, after = norm(read()), norm(_as_read(drawn(read()), 1 << 12))
    return before / after if before >= _NO_NORM and after >= _NO_NORM else 1.0
