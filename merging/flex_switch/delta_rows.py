"""The rows of a tensor's delta that changed, and their quantisation."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.blocks import as_matrix
from flexswitch.codecs.format.records import float32_scale
from flexswitch.codecs.sparse import LEVEL_DTYPES, MAX_BLOCK_ENTRIES, FloatArray, SparseTensor
from flexswitch.codecs.sums import square_sum
from flexswitch.merging.compression.delta import Squares
from flexswitch.merging.compression.relative_error import squares_between
from flexswitch.merging.task_vectors.task_vector import TaskVector, delta_tensor


@dataclass(frozen=True, eq=False)
class DeltaRows:
    """The rows of one tensor that changed; the other rows are never kept.

    rows: (row,) int64, their numbers in the tensor's matrix (codecs/blocks.py). delta: (row · columns,)
    float32. rms: root mean square of delta, in whose multiples thresholds are trained. Unchanged rows are
    left out of the mean, as their number says nothing about the size of the changes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    rows: NDArray[np.int64]
    columns: int
    delta: FloatArray
    rms: float

    @property
    def entries(self) -> int:
        """The number of entries of these rows."""
        return len(self.delta)


@dataclass(frozen=True, eq=False)
class Quantisation:
    """How a tensor is quantised: entries above their row's threshold become levels of `bits` bits.

    thresholds: (row,) float32.
    """

    thresholds: FloatArray
    bits: int
    scale: float


def read_delta_rows(vector: TaskVector, name: str) -> DeltaRows | None:
    """Returns the changed rows of a task vector's tensor, or None if there are none."""
    info = vector.tensors[name]
    grid = as_matrix(info.shape)
    whole = delta_tensor(vector, name).numpy().reshape(grid.rows, grid.columns)
    rows = np.flatnonzero(whole.any(axis=1))
    if not len(rows):
        return None
    delta = whole[rows].reshape(-1)
    rms = float(np.sqrt(square_sum(delta) / len(delta)))
    return DeltaRows(name, info.shape, info.dtype, rows, grid.columns, delta, rms)


def sparse_tensor(tensor: DeltaRows, quantised: Quantisation) -> SparseTensor:
    """Returns the entries that a quantisation keeps, each as its nearest level."""
    by_row = tensor.delta.reshape(-1, tensor.columns)  # (row, column)
    kept = np.abs(by_row) > quantised.thresholds[:, None]
    grid = as_matrix(tensor.shape)
    marked = np.zeros((grid.rows, grid.columns), np.bool_)
    marked[tensor.rows] = kept
    mask = np.packbits(marked.reshape(-1), bitorder="little")
    return SparseTensor(tensor.shape, mask, levels_of(by_row[kept], quantised), quantised.bits)


def nothing_kept(shape: tuple[int, ...]) -> SparseTensor:
    """Returns a tensor of which no entry is kept."""
    mask = np.zeros(-(-math.prod(shape) // 8), np.uint8)
    return SparseTensor(shape, mask, np.empty(0, LEVEL_DTYPES[1]), 1)


def stored_form(tensor: DeltaRows, quantised: Quantisation) -> tuple[SparseTensor, float]:
    """Returns the entries that a quantisation keeps, and their scale, which is 0 where it keeps none."""
    sparse = sparse_tensor(tensor, quantised)
    return (sparse, quantised.scale) if len(sparse.levels) else (nothing_kept(tensor.shape), 0.0)


def row_squares(tensor: DeltaRows, quantised: Quantisation) -> Squares:
    """Returns the sums of squares of a tensor and of what a quantisation leaves of it."""
    kept = np.abs(tensor.delta) > np.repeat(quantised.thresholds, tensor.columns)
    mask, levels = np.packbits(kept, bitorder="little"), levels_of(tensor.delta[kept], quantised)
    sparse = SparseTensor(tensor.delta.shape, mask, levels, quantised.bits)
    blocks = (
        tensor.delta[start : start + MAX_BLOCK_ENTRIES]
        for start in range(0, tensor.entries, MAX_BLOCK_ENTRIES)
    )
    return squares_between(blocks, sparse, float32_scale(quantised.scale))


def levels_of(values: FloatArray, quantised: Quantisation) -> NDArray[np.uint8]:
    """Returns the nearest level of each value, (kept,). codecs/sparse.py defines levels."""
    if quantised.bits == 1:
        return (values > 0).view(np.uint8)
    steps = (1 << quantised.bits) - 1
    levels = np.floor((values.astype(np.float64) / quantised.scale * steps + steps) / 2 + 0.5)
    return np.clip(levels, 0, steps).astype(LEVEL_DTYPES[quantised.bits])
