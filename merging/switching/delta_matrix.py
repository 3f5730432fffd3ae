"""A task's change to one weight matrix, held in memory, and the choice of its form.

Low densities are kept as CSR (csr.py); higher ones as int8 where the levels are small integers (int8.py),
otherwise as float32 (float32.py); a device with memory of its own keeps low-bit levels as bit planes
(bit_planes.py). Density and levels alone decide, never a clock.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.compiled import compiled, few
from flexswitch.codecs.format.records import PartRecord
from flexswitch.codecs.sparse import FloatArray, Levels, level_table, level_values
from flexswitch.merging.switching.activations import Ids
from flexswitch.merging.switching.bit_planes import BitPlaneMatrix, pack_bit_planes
from flexswitch.merging.switching.csr import CsrMatrix
from flexswitch.merging.switching.float32 import Float32Matrix
from flexswitch.merging.switching.int8 import LARGEST_CODE, Codes, Int8Matrix, digits_for
from flexswitch.merging.switching.low_rank_matrix import stacked
from flexswitch.merging.switching.multiple_matrix import MultipleMatrix
from flexswitch.merging.switching.sum_matrix import Part, SumMatrix
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.task_vector import TaskVector

# Densities (benchmarks/switching) at which a CSR product takes as long as an int8 one, or a float32 one.
_CSR_OR_INT8 = 0.055
_CSR_OR_FLOAT32 = 0.3


class DeltaMatrix(Protocol):
    """One tensor's delta τ as a matrix: the first dimension by all others."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def nbytes(self) -> int:
        """The size in memory."""

    def dense(self) -> Tensor:
        """Returns the delta, (row, column) float32."""

    def add_to(self, weights: FloatArray, factor: float) -> None:
        """Adds factor · τ to (row, column) weights in place."""


class _Entries(NamedTuple):
    """A matrix's kept entries: positions, rising, in the flattened matrix, and values, both (kept,)."""

    positions: Ids
    values: FloatArray


@dataclass(frozen=True, eq=False)
class TransposedMatrix:
    """The matrix of a layer that multiplies by its transpose, (in, out), kept as (out, in)."""

    inner: Part | SumMatrix | BitPlaneMatrix

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        columns, rows = self.inner.shape
        return rows, columns

    @property
    def nbytes(self) -> int:
        """The size in memory."""
        return self.inner.nbytes

    def dense(self) -> Tensor:
        """Returns the delta, (row, column) float32."""
        return self.inner.dense().t()

    def add_to(self, weights: FloatArray, factor: float) -> None:
        """Adds factor · τ to (row, column) weights in place."""
        self.inner.add_to(weights.T, factor)


def untransposed(matrix: DeltaMatrix) -> DeltaMatrix:
    """Returns the matrix that a layer multiplies its inputs by, (out, in)."""
    return matrix.inner if isinstance(matrix, TransposedMatrix) else matrix


def read_delta_matrix(
    vector: TaskVector, name: str, transposed: bool, base_rms: float, device: torch.device | None = None
) -> DeltaMatrix:
    """Returns a tensor's delta matrix: bit planes on a device where its levels have up to 8 bits.

    device: None for the CPU's forms, which vectors and wider levels have in any case; transposed, base_rms:
    as for `cpu_matrix`. Raises: DecodeError.
    """
    if device is None or not _is_sparse(vector, name) or len(vector.tensors[name].shape) < 2:
        return cpu_matrix(vector, name, transposed, base_rms)
    record = vector.artifact.header.tensors[name]
    if not 0 < record.bits <= 8:
        return cpu_matrix(vector, name, transposed, base_rms)
    positions, levels = _levels_of(vector, name)
    packed = pack_bit_planes(
        positions,
        levels.astype(np.uint8),
        _matrix_shape(vector, name),
        record.bits,
        record.scale,
        record.zero,
        transposed,
        device,
    )
    return TransposedMatrix(packed) if transposed else packed


def cpu_matrix(
    vector: TaskVector, name: str, transposed: bool = False, base_rms: float = 0.0
) -> Part | SumMatrix | TransposedMatrix:
    """Returns a tensor's delta matrix in the cheapest of the CPU's forms; a vector is kept as float32.

    transposed: whether the tensor's layer multiplies by the transpose; base_rms: the root mean square of the
    base's weights, which sets the precision of the products. Raises: DecodeError.
    """
    if len(vector.tensors[name].shape) < 2:
        entries = _kept(vector, name) if _has_entries(vector, name) else _plain(vector, name)
        return Float32Matrix(_scatter(entries.positions, entries.values, _matrix_shape(vector, name), False))
    if _has_entries(vector, name) or _has_thin_factors(vector, name):
        made = _sum(_parts_of(vector, name, transposed, base_rms))
    else:
        made = _cheapest(_plain(vector, name), _matrix_shape(vector, name), transposed)
    return TransposedMatrix(made) if transposed else made


def _parts_of(vector: ArtifactVector, name: str, transposed: bool, base_rms: float) -> list[Part]:
    """Returns the parts of a tensor, (out, in) if its layer multiplies by the transpose."""
    parts: list[Part] = [
        _of_entries(vector, name, part, transposed, base_rms) for part in _entry_parts(vector, name)
    ]
    if vector.is_low_rank(name):
        parts.append(stacked(vector.thin_factors(name), transposed))
    if factor := vector.base_factor(name):
        base = vector.base_tensor(name).view(_matrix_shape(vector, name))
        parts.append(MultipleMatrix(base.t() if transposed else base, factor))
    return parts


def _sum(parts: list[Part]) -> Part | SumMatrix:
    return parts[0] if len(parts) == 1 else SumMatrix(tuple(parts))


def _of_entries(
    vector: ArtifactVector, name: str, part: int, transposed: bool, base_rms: float
) -> CsrMatrix | Int8Matrix | Float32Matrix:
    """Returns the matrix of the kept entries of a part."""
    shape = _matrix_shape(vector, name)
    codes = _codes(vector.artifact.header.tensors[name].parts[part], shape)
    if codes is not None:
        return _int8(vector, name, part, shape, codes, transposed, base_rms)
    return _cheapest(_kept(vector, name, part), shape, transposed)


def _cheapest(entries: _Entries, shape: tuple[int, int], transposed: bool) -> CsrMatrix | Float32Matrix:
    if len(entries.positions) <= _CSR_OR_FLOAT32 * shape[0] * shape[1]:
        return _csr(entries, shape, transposed)
    return Float32Matrix(_scatter(entries.positions, entries.values, shape, transposed))


def _is_sparse(vector: TaskVector, name: str) -> TypeGuard[ArtifactVector]:
    return isinstance(vector, ArtifactVector) and vector.is_sparse(name)


def _has_entries(vector: TaskVector, name: str) -> TypeGuard[ArtifactVector]:
    return isinstance(vector, ArtifactVector) and vector.has_entries(name)


def _has_thin_factors(vector: TaskVector, name: str) -> TypeGuard[ArtifactVector]:
    """Returns whether a tensor's parts are thin factors, smaller than it, beside at most one of entries."""
    if not isinstance(vector, ArtifactVector) or not vector.is_low_rank(name):
        return False
    rows, columns = _matrix_shape(vector, name)
    rank = sum(part.rank or 0 for part in vector.artifact.header.tensors[name].parts)
    return rank * (rows + columns) < rows * columns and len(_entry_parts(vector, name)) < 2


def _entry_parts(vector: ArtifactVector, name: str) -> list[int]:
    parts = vector.artifact.header.tensors[name].parts
    return [number for number, part in enumerate(parts) if part.rank is None]


def _plain(vector: TaskVector, name: str) -> _Entries:
    whole = np.concatenate([np.empty(0, np.float32), *vector.blocks(name)])
    positions = np.flatnonzero(whole)
    return _Entries(positions, whole[positions])


def _matrix_shape(vector: TaskVector, name: str) -> tuple[int, int]:
    shape = vector.tensors[name].shape
    rows = shape[0] if len(shape) > 1 else 1
    return rows, vector.tensors[name].entries // max(1, rows)


def _levels_of(vector: ArtifactVector, name: str, part: int = 0) -> tuple[Ids, Levels]:
    """Returns the positions of a part's kept entries, rising, and their levels, (kept,)."""
    blocks = list(vector.artifact.entries(name, part))
    positions = [start + block.astype(np.int64) for start, block, _ in blocks]
    levels = np.concatenate([block for _, _, block in blocks]) if blocks else np.empty(0, np.uint8)
    return np.concatenate([np.empty(0, np.int64), *positions]), levels


def _kept(vector: ArtifactVector, name: str, part: int = 0) -> _Entries:
    record = vector.artifact.header.tensors[name].parts[part]
    positions, levels = _levels_of(vector, name, part)
    return _Entries(positions, level_values(levels, record.bits, record.scale, record.zero))


def _codes(record: PartRecord, shape: tuple[int, int]) -> Codes | None:
    """Returns each level's value over the scale, an integer, (2^bits,), for a matrix kept as int8.

    None for a sparse or narrow matrix, and where a value exceeds a byte.
    """
    is_narrow = 1 in shape  # torch's int8 product is wrong over a single column (seen in 2.13)
    if record.bits > 8 or is_narrow or record.kept <= _CSR_OR_INT8 * shape[0] * shape[1]:
        return None
    steps = (1 << record.bits) - 1
    codes = 2 * np.arange(steps + 1) - steps if record.zero is None else np.arange(steps + 1) - record.zero
    return codes.astype(np.int8) if np.abs(codes).max() <= LARGEST_CODE else None


def _int8(
    vector: ArtifactVector,
    name: str,
    part: int,
    shape: tuple[int, int],
    codes: Codes,
    transposed: bool,
    base_rms: float,
) -> Int8Matrix:
    """Returns the matrix of a tensor's codes, which are written where they belong block by block."""
    record = vector.artifact.header.tensors[name].parts[part]
    whole, counts = np.zeros(shape[0] * shape[1], np.int8), np.zeros(len(codes), np.int64)
    for start, positions, levels in vector.artifact.entries(name, part):
        if few(len(positions)):
            whole[start:][positions] = codes[levels]
            counts += np.bincount(levels, minlength=len(codes))
        else:
            _write_codes(whole[start:], positions, levels, codes, counts)
    values = level_table(record.bits, record.scale, record.zero)
    table = np.zeros(256, np.float32)
    table[codes.astype(np.int64) + 128] = values
    table[128] = 0
    squares = np.square(values[counts > 0], dtype=np.float64) @ counts[counts > 0]
    digits = digits_for(float(np.sqrt(squares / len(whole))), base_rms)
    scale = record.scale if record.zero is not None else record.scale / max(1, (1 << record.bits) - 1)
    matrix = whole.reshape(shape)
    return Int8Matrix(np.ascontiguousarray(matrix.T) if transposed else matrix, table, scale, digits)


@compiled
def _write_codes(whole: Codes, positions: NDArray[Any], levels: Levels, codes: Codes, counts: Ids) -> None:
    for index in range(len(positions)):
        level = levels[index]
        whole[positions[index]] = codes[level]
        counts[level] += 1


def _csr(entries: _Entries, shape: tuple[int, int], transposed: bool) -> CsrMatrix:
    rows, columns = np.divmod(entries.positions, max(1, shape[1]))
    values = entries.values
    if transposed:
        order = np.argsort(columns, kind="stable")
        rows, columns, values, shape = columns[order], rows[order], values[order], shape[::-1]
    indptr = np.searchsorted(rows, np.arange(shape[0] + 1))
    return CsrMatrix(shape, indptr, columns.astype(np.uint16 if shape[1] <= 1 << 16 else np.uint32), values)


def _scatter(positions: Ids, found: NDArray[Any], shape: tuple[int, int], transposed: bool) -> NDArray[Any]:
    whole = np.zeros(shape, found.dtype)
    whole.reshape(-1)[positions] = found
    return np.ascontiguousarray(whole.T) if transposed else whole
