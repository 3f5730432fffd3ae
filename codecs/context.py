"""`context`: mask, signs and magnitudes in a range coder that adapts to rows, columns and sign patterns.

Fine-tuning changes a matrix along few directions. Some rows and columns therefore keep more entries than
others, and the signs of a row follow one of a few patterns, or its opposite. The model in `context_model.py`
adapts to both from the earlier rows. Floating-point levels do not compress and are stored first, unchanged.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.bits import pack_levels
from flexswitch.codecs.codec import PayloadReader, check_block, take_level_plane, take_levels
from flexswitch.codecs.context_model import (
    LOWEST_STATE,
    MOST_PATTERNS,
    STATE_BITS,
    code_matrix,
    encode_symbols,
)
from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.masks import mask_positions
from flexswitch.codecs.row_patterns import assign_rows
from flexswitch.codecs.sparse import SparseLayout, SparseStats, SparseTensor

_WIDEST_MODELLED = 8
_STATE_BYTES = STATE_BITS // 8


@dataclass(frozen=True)
class Context:
    """patterns: number of sign patterns, 1, 2, 4, 8 or 16."""

    name: ClassVar[str] = "context"
    fast: ClassVar[bool] = False

    patterns: int = 1

    def __post_init__(self) -> None:
        if self.patterns not in (1, 2, 4, 8, 16):
            raise ValueError(f"patterns {self.patterns}, expected 1, 2, 4, 8 or {MOST_PATTERNS}")

    @classmethod
    def fitted(cls, stats: SparseStats) -> Self:
        """Returns the codec with 1, 4 or 16 patterns, whichever gives the smallest encoding."""
        choices = (1, 4, 16) if 1 <= stats.layout.bits <= _WIDEST_MODELLED else (1,)
        return min((cls(patterns) for patterns in choices), key=lambda codec: codec.estimate_bytes(stats))

    def encode(self, sparse: SparseTensor) -> bytes:
        """Returns the floating-point levels, then the coded bits."""
        check_block(sparse.layout, ValueError)
        if not len(sparse.levels):
            return b""
        modelled = 1 <= sparse.bits <= _WIDEST_MODELLED
        rows, columns = matrix_shape(sparse.shape)
        marked = np.unpackbits(sparse.mask, count=rows * columns, bitorder="little").reshape(rows, columns)
        if not modelled:
            coded = _encode_matrix(marked, np.empty(0, np.uint8), 0, np.zeros(rows, np.int32), self.patterns)
            return pack_levels(sparse.levels, sparse.bits) + coded
        levels = sparse.levels.astype(np.uint8, copy=False)
        signs = 2 * (levels >> (sparse.bits - 1)).astype(np.int32) - 1  # (kept,)
        places = mask_positions(sparse.mask, len(levels))
        patterns = assign_rows(rows, columns, places, signs, self.patterns)
        return _encode_matrix(marked, levels, sparse.bits, patterns, self.patterns)

    def decode(self, data: bytes, layout: SparseLayout) -> SparseTensor:
        """Returns the tensor. Raises: DecodeError."""
        check_block(layout)
        reader = PayloadReader(data)
        if not layout.kept:
            mask, levels = np.zeros(layout.mask_bytes, np.uint8), take_levels(reader, layout)
            return SparseTensor(layout.shape, mask, levels, layout.bits)
        modelled = 1 <= layout.bits <= _WIDEST_MODELLED
        plain = None if modelled else take_level_plane(reader, layout)
        rows, columns = matrix_shape(layout.shape)
        found = _decode_matrix(
            reader.rest(), rows, columns, layout.kept, layout.bits if modelled else 0, self.patterns
        )
        if found is None:
            raise DecodeError(f"the coded bits do not give {layout.kept} of {layout.entries} entries")
        marked, levels = found
        mask = np.packbits(marked, bitorder="little")
        return SparseTensor(layout.shape, mask, levels if plain is None else plain, layout.bits)

    def estimate_bytes(self, stats: SparseStats) -> int:
        """Returns the exact size, by encoding."""
        return len(self.encode(stats.sparse))


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns (rows, columns): the first dimension and all others, or one row if there is one dimension.

    >>> matrix_shape((4, 3, 2)), matrix_shape((5,))
    ((4, 6), (1, 5))
    """
    rows = shape[0] if len(shape) > 1 else 1
    return rows, int(np.prod(shape[1:] if len(shape) > 1 else shape, dtype=np.int64))


def _encode_matrix(
    marked: NDArray[np.uint8],
    levels: NDArray[np.uint8],
    bits: int,
    patterns: NDArray[np.int32],
    pattern_count: int,
) -> bytes:
    """Returns the coded matrix, which must keep at least one entry.

    marked: (row, column) of 0 and 1. levels: (kept,) of `bits` in 0..8. patterns: (row,), see `assign_rows`.
    """
    levels = levels.copy()
    symbols = np.empty(marked.size + len(levels) * bits + 11 * len(marked), np.uint16)
    coder = np.zeros(2, np.int64)
    stream = np.frombuffer(b"", np.uint8)
    code_matrix(False, symbols, stream, coder, marked, levels, bits, patterns, pattern_count)
    out = np.empty(2 * int(coder[1]) + _STATE_BYTES, np.uint8)
    return out[encode_symbols(symbols[: coder[1]], out) :].tobytes()


def _decode_matrix(
    data: bytes, rows: int, columns: int, kept: int, bits: int, pattern_count: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    """Returns the marks (row, column) and the levels (kept,), or None if `data` is invalid."""
    marked, levels = np.zeros((rows, columns), np.uint8), np.zeros(kept if bits else 0, np.uint8)
    stream, patterns = np.frombuffer(data, np.uint8), np.zeros(rows, np.int32)
    state = int.from_bytes(data[:_STATE_BYTES], "big")
    if len(data) < _STATE_BYTES or state < LOWEST_STATE:
        return None
    coder = np.array([state, _STATE_BYTES], np.int64)
    code_matrix(True, np.empty(0, np.uint16), stream, coder, marked, levels, bits, patterns, pattern_count)
    finished = int(coder[0]) == LOWEST_STATE and int(coder[1]) == len(data)
    whole = finished and int(marked.sum(dtype=np.int64)) == kept
    return (marked, levels) if whole else None
