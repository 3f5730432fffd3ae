"""The forms of a unit's delta in memory, and which one a unit gets.

Few entries a row are kept as such; many as one byte each where their levels are small whole numbers; what is
left as float32. Density and levels alone decide, never a clock.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray, Levels, level_table, level_values
from flexswitch.merging.switching.activations import Activations
from flexswitch.merging.switching.bit_planes import BitPlaneMatrix, pack_bit_planes
from flexswitch.merging.switching.csr import CsrMatrix, Ids
from flexswitch.merging.switching.float32 import Float32Matrix
from flexswitch.merging.switching.int8 import LARGEST_CODE, Codes, Int8Matrix, digits_for
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.task_vector import TaskVector

# Shares of kept entries (benchmarks/switching): at the first a product of bytes takes as long as a sparse
# one, at the second a product of all values.
_SPARSE_BESIDE_CODES = 0.055
_SPARSE_BESIDE_VALUES = 0.3


class DeltaMatrix(Protocol):
    """One unit's delta τ as a matrix: the first dimension by all others."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""

    def dense(self) -> Tensor:
        """Returns the delta, (row, column) float32."""

    def add_to(self, weights: FloatArray, factor: float) -> None:
        """Adds factor · τ to (row, column) weights in place."""


class CpuDeltaMatrix(DeltaMatrix, Protocol):
    """A unit that the compiled passes of the CPU multiply by."""

    def add_rows(self, ids: Ids, places: Ids, factors: FloatArray, out: FloatArray) -> None:
        """Adds factors[i] · τ[ids[places[i]]] to out[places[i]]; ids: (token,), out: (token, column).

        places: (entry,), each once; factors: (entry,) float32.
        """

    def add_product(
        self, inputs: Activations, places: Ids, factors: FloatArray, shift: FloatArray, out: FloatArray
    ) -> None:
        """Adds factors[i] · (τ·x + shift) to out[places[i]] for x = inputs[places[i]].

        inputs: (token, column), shift: (row,), out: (token, row).
        """


class _Entries(NamedTuple):
    """A unit's kept entries. places: (kept,), rising; values: (kept,); codes: (kept,), or None without.

    table: (256,), the value of code c at c + 128.
    """

    places: Ids
    values: FloatArray
    codes: Codes | None = None
    table: FloatArray | None = None
    step: float = 0.0


@dataclass(frozen=True, eq=False)
class TransposedMatrix:
    """A unit whose layer multiplies by its transpose, (in, out): kept as (out, in)."""

    inner: CpuDeltaMatrix | BitPlaneMatrix

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        columns, rows = self.inner.shape
        return rows, columns

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return self.inner.nbytes

    def dense(self) -> Tensor:
        """Returns the delta, (row, column) float32."""
        return self.inner.dense().t()

    def add_to(self, weights: FloatArray, factor: float) -> None:
        """Adds factor · τ to (row, column) weights in place."""
        self.inner.add_to(weights.T, factor)


def read_delta_matrix(
    vector: TaskVector, unit: str, turned: bool, base_size: float, device: torch.device
) -> DeltaMatrix:
    """Returns a unit's delta as a device's products take it, packed where its levels have up to 8 bits.

    What has no such levels, and vectors, are as on the CPU. Raises: DecodeError.
    """
    is_matrix = len(vector.tensors[unit].shape) > 1
    if not isinstance(vector, ArtifactVector) or not is_matrix or not _is_packed(device):
        return cpu_matrix(vector, unit, turned, base_size)
    record = vector.artifact.header.tensors[unit]
    if not 0 < record.bits <= 8:
        return cpu_matrix(vector, unit, turned, base_size)
    places, levels = _levels_of(vector, unit)
    packed = pack_bit_planes(
        places,
        levels.astype(np.uint8),
        _matrix_of(vector, unit),
        record.bits,
        record.scale,
        record.zero,
        turned,
        device,
    )
    return TransposedMatrix(packed) if turned else packed


def cpu_matrix(
    vector: TaskVector, unit: str, turned: bool = False, base_size: float = 0.0
) -> CpuDeltaMatrix | TransposedMatrix:
    """Returns a unit's delta in its form; `turned` says that its layer multiplies by the transpose.

    base_size: the root mean square of the base's weights, by which the delta's products are precise. A vector
    is kept as values: there is little to save. Raises: DecodeError.
    """
    matrix = _matrix_of(vector, unit)
    entries = _coded(vector, unit) if isinstance(vector, ArtifactVector) else _plain(vector, unit)
    if len(vector.tensors[unit].shape) < 2:
        return Float32Matrix(_spread(entries.places, entries.values, matrix, False))
    made = _matrix_form(entries, matrix, turned, base_size)
    return TransposedMatrix(made) if turned else made


def _matrix_form(
    entries: "_Entries", matrix: tuple[int, int], turned: bool, base_size: float
) -> CpuDeltaMatrix:
    density = len(entries.places) / max(1, matrix[0] * matrix[1])
    if density <= (_SPARSE_BESIDE_VALUES if entries.codes is None else _SPARSE_BESIDE_CODES):
        return _sparse_rows(entries, matrix, turned)
    narrow = 1 in matrix  # torch's product of bytes is wrong over a single column (seen in 2.13)
    if entries.codes is None or entries.table is None or narrow:
        return Float32Matrix(_spread(entries.places, entries.values, matrix, turned))
    codes = _spread(entries.places, entries.codes, matrix, turned)
    size = float(np.sqrt(np.square(entries.values, dtype=np.float64).sum() / codes.size))
    return Int8Matrix(codes, entries.table, entries.step, digits_for(size, base_size))


def _plain(vector: TaskVector, unit: str) -> _Entries:
    whole = np.concatenate([np.empty(0, np.float32), *vector.blocks(unit)])
    places = np.flatnonzero(whole)
    return _Entries(places, whole[places])


def _is_packed(device: torch.device) -> bool:
    return device.type != "cpu"


def _matrix_of(vector: TaskVector, unit: str) -> tuple[int, int]:
    shape = vector.tensors[unit].shape
    rows = shape[0] if len(shape) > 1 else 1
    return rows, vector.tensors[unit].entries // max(1, rows)


def _levels_of(vector: ArtifactVector, unit: str) -> tuple[Ids, Levels]:
    """Returns where a unit's kept entries lie, rising, and their levels, (kept,)."""
    blocks = list(vector.artifact.entries(unit))
    places = [start + each.astype(np.int64) for start, each, _ in blocks]
    levels = np.concatenate([each for _, _, each in blocks]) if blocks else np.empty(0, np.uint8)
    return np.concatenate([np.empty(0, np.int64), *places]), levels


def _coded(vector: ArtifactVector, unit: str) -> _Entries:
    record = vector.artifact.header.tensors[unit]
    flat, levels = _levels_of(vector, unit)
    values = level_values(levels, record.bits, record.scale, record.zero)
    codes = _codes_of_levels(record.bits, record.zero)
    if codes is None:
        return _Entries(flat, values)
    table = np.zeros(256, np.float32)
    table[codes.astype(np.int64) + 128] = level_table(record.bits, record.scale, record.zero)
    table[128] = 0
    step = record.scale if record.zero is not None else record.scale / max(1, (1 << record.bits) - 1)
    return _Entries(flat, values, codes[levels], table, step)


def _codes_of_levels(bits: int, zero: int | None) -> Codes | None:
    """Returns each level's value over the step, a whole number, (2^bits,); None where one takes no byte."""
    if bits > 8:
        return None
    steps = (1 << bits) - 1
    codes = 2 * np.arange(steps + 1) - steps if zero is None else np.arange(steps + 1) - zero
    return codes.astype(np.int8) if np.abs(codes).max() <= LARGEST_CODE else None


def _sparse_rows(entries: _Entries, matrix: tuple[int, int], turned: bool) -> CsrMatrix:
    rows, columns = np.divmod(entries.places, max(1, matrix[1]))
    values = entries.values
    if turned:
        order = np.argsort(columns, kind="stable")
        rows, columns, values, matrix = columns[order], rows[order], values[order], matrix[::-1]
    starts = np.searchsorted(rows, np.arange(matrix[0] + 1))
    return CsrMatrix(matrix, starts, columns.astype(np.uint16 if matrix[1] <= 1 << 16 else np.uint32), values)


def _spread(places: Ids, found: NDArray[Any], matrix: tuple[int, int], turned: bool) -> NDArray[Any]:
    whole = np.zeros(matrix, found.dtype)
    whole.reshape(-1)[places] = found
    return np.ascontiguousarray(whole.T) if turned else whole
