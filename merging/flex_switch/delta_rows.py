"""The rows of a tensor's delta that changed, and their quantisation."""

import math
from collections.abc import Callable
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

    rows: (row,) int64, their numbers in the tensor's matrix (codecs/blocks.py). read: returns their delta,
    (row · columns,) float32. rms: root mean square of it, in whose multiples thresholds are trained.
    Unchanged rows are left out of the mean, as their number says nothing about the size of the changes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    rows: NDArray[np.int64]
    columns: int
    read: Callable[[], FloatArray]
    rms: float

    @property
    def delta(self) -> FloatArray:
        """The rows' delta, (row · columns,) float32. It may be read anew each time."""
        return self.read()

    @property
    def entries(self) -> int:
        """The number of entries of these rows."""
        return len(self.rows) * self.columns


@dataclass(frozen=True, eq=False)
class Quantisation:
    """How a tensor is quantised: entries above their row's threshold become levels of `bits` bits.

    thresholds: (row,) float32.
    """

    thresholds: FloatArray
    bits: int
    scale: float


def read_delta_rows(vector: TaskVector, name: str, held: bool = True) -> DeltaRows | None:
    """Returns the changed rows of a task vector's tensor, or None if there are none.

    held: whether their delta stays in memory, or is read each time that it is used.
    """
    info = vector.tensors[name]
    grid = as_matrix(info.shape)

    def matrix() -> FloatArray:
        return delta_tensor(vector, name).numpy().reshape(grid.rows, grid.columns)

    whole = matrix()
    rows = np.flatnonzero(whole.any(axis=1))
    if not len(rows):
        return None
    delta = _taken(whole, rows)
    rms = float(np.sqrt(square_sum(delta) / len(delta)))
    read = (lambda: delta) if held else (lambda: _taken(matrix(), rows))
    return DeltaRows(name, info.shape, info.dtype, rows, grid.columns, read, rms)


def _taken(matrix: FloatArray, rows: NDArray[np.int64]) -> FloatArray:
    """Returns rows of a matrix, flat; without a copy where they are all."""
    return (matrix if len(rows) == len(matrix) else matrix[rows]).reshape(-1)


def kept_entries(by_row: FloatArray, quantised: Quantisation) -> NDArray[np.bool_]:
    """Returns which entries of a tensor's changed rows are above their row's threshold, (row, column)."""
    thresholds = quantised.thresholds[:, None]
    kept: NDArray[np.bool_] = by_row > thresholds
    kept |= by_row < -thresholds  # in place of magnitudes, which would take four times this memory
    return kept


def sparse_tensor(tensor: DeltaRows, quantised: Quantisation) -> SparseTensor:
    """Returns the entries that a quantisation keeps, each as its nearest level."""
    by_row = tensor.delta.reshape(-1, tensor.columns)  # (row, column)
    kept = kept_entries(by_row, quantised)
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
    delta = tensor.delta
    kept = kept_entries(delta.reshape(-1, tensor.columns), quantised).reshape(-1)
    mask, levels = np.packbits(kept, bitorder="little"), levels_of(delta[kept], quantised)
    sparse = SparseTensor(delta.shape, mask, levels, quantised.bits)
    blocks = (
        delta[start : start + MAX_BLOCK_ENTRIES] for start in range(0, tensor.entries, MAX_BLOCK_ENTRIES)
    )
    return squares_between(blocks, sparse, float32_scale(quantised.scale))


def levels_of(values: FloatArray, quantised: Quantisation) -> NDArray[np.uint8]:
    """Returns the nearest level of each value, (kept,). codecs/sparse.py defines levels."""
    if quantised.bits == 1:
        return (values > 0).view(np.uint8)
    steps = (1 << quantised.bits) - 1
    levels = np.floor((values.astype(np.float64) / quantised.scale * steps + steps) / 2 + 0.5)
    return np.clip(levels, 0, steps).astype(LEVEL_DTYPES[quantised.bits])
