"""Matrices that are stored as the product of two, computed block by block.

Every entry is the sum over the rank, in its order and in float64, rounded once: it does not depend on blocks.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.task_vectors.task_vector import block_ranges


def product_blocks(
    factors: FloatArray, rows: int, weights: Sequence[float] | None = None, size: int | None = None
) -> Iterator[FloatArray]:
    """Yields the flat float32 blocks of A·diag(weights)·Bᵀ, as `TaskVector.blocks` does.

    factors: A, (row, rank), above B, (column, rank). weights: float32, (rank,); None for 1.
    """
    left = factors[:rows].astype(np.float64)
    if weights is not None:
        left *= np.array(weights, np.float32).astype(np.float64)
    right = np.ascontiguousarray(factors[rows:].T, dtype=np.float64)  # (rank, column)
    for start, stop in block_ranges(rows * right.shape[1], size):
        block = np.empty(stop - start, np.float32)
        _multiply(left, right, start, np.zeros(right.shape[1]), block)
        yield block


@compiled
def _multiply(
    left: NDArray[np.float64],
    right: NDArray[np.float64],
    start: int,
    sums: NDArray[np.float64],
    block: FloatArray,
) -> None:
    """Writes the entries of left · right from `start` on. sums: (column,), for the entries of one row."""
    rank, columns = right.shape
    done = 0
    while done < block.size:
        row, first = (start + done) // columns, (start + done) % columns
        count = min(columns - first, block.size - done)
        for column in range(first, first + count):
            sums[column] = 0
        for index in range(rank):
            factor, line = left[row, index], right[index]
            for column in range(first, first + count):
                sums[column] += factor * line[column]
        for column in range(count):
            block[done + column] = sums[first + column]
        done += count
