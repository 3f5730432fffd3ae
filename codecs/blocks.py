"""Cuts a tensor into blocks that are coded separately, and leaves out empty rows.

A tensor is treated as a matrix. Its first dimension gives the rows; if they would be longer than 2^17
entries, its first dimensions do, but never the last one. A block has whole rows, a multiple of eight, and at
most 2^20 entries; if eight rows are longer than that, it has 2^20 entries of one row.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled, few
from flexswitch.codecs.masks import Positions, count_bits
from flexswitch.codecs.sparse import MAX_BLOCK_ENTRIES, SparseTensor, binary_entropy

_LONGEST_ROW = MAX_BLOCK_ENTRIES // 8
_RECORD_BITS = 256  # approximate size of the row flags' record in the table

Mask = NDArray[np.uint8]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Grid:
    """The size of a matrix, which determines its blocks. block_entries: other values are for tests."""

    rows: int
    columns: int
    block_entries: int = MAX_BLOCK_ENTRIES

    def count(self) -> int:
        """Returns the number of blocks."""
        if self.columns <= self.block_entries // 8:
            return -(-self.rows // self._height) if self.columns else 0
        return -(-self.rows * self.columns // self.block_entries)

    @property
    def _height(self) -> int:
        """The number of rows of a block."""
        return self.block_entries // max(1, self.columns) // 8 * 8

    def shapes(self) -> list[tuple[int, int]]:
        """Returns the shapes of the blocks in order. A matrix without entries has none."""
        if self.columns <= self.block_entries // 8:
            starts = range(0, self.rows if self.columns else 0, self._height)
            return [(min(self._height, self.rows - start), self.columns) for start in starts]
        entries = self.rows * self.columns
        starts = range(0, entries, self.block_entries)
        return [(1, min(self.block_entries, entries - start)) for start in starts]


def as_matrix(shape: tuple[int, ...]) -> Grid:
    """Returns the matrix as which a tensor is treated.

    >>> as_matrix((8, 4096, 14336))
    Grid(rows=32768, columns=14336, block_entries=1048576)
    """
    if len(shape) < 2:
        return Grid(1, math.prod(shape))
    split = next(
        (split for split in range(1, len(shape)) if math.prod(shape[split:]) <= _LONGEST_ROW), len(shape) - 1
    )
    return Grid(math.prod(shape[:split]), math.prod(shape[split:]))


def cut(sparse: SparseTensor, grid: Grid) -> Iterator[SparseTensor]:
    """Yields the blocks of a matrix, each of shape (rows, columns). They share its memory."""
    start, used = 0, 0
    for shape in grid.shapes():
        entries = shape[0] * shape[1]
        mask = sparse.mask[start // 8 : -(-(start + entries) // 8)]
        kept = count_bits(mask)
        yield SparseTensor(shape, mask, sparse.levels[used : used + kept], sparse.bits)
        start, used = start + entries, used + kept


def full_rows(sparse: SparseTensor, grid: Grid) -> Flags | None:
    """Returns which rows keep an entry, (row,), or None if leaving out the others would save no bytes."""
    if not 1 < grid.rows <= MAX_BLOCK_ENTRIES or not len(sparse.levels):
        return None
    flags = _flags(sparse.mask, grid)
    full, kept = int(np.count_nonzero(flags)), len(sparse.levels)
    entries, left = grid.rows * grid.columns, full * grid.columns
    saved = entries * binary_entropy(kept / entries) - left * binary_entropy(kept / left)
    return flags if saved > grid.rows * binary_entropy(full / grid.rows) + _RECORD_BITS else None


def _flags(mask: Mask, grid: Grid) -> Flags:
    flags = np.zeros(grid.rows, np.bool_)
    if _are_bytes(grid.columns):
        _whole(mask, grid.columns).any(axis=1, out=flags)
    elif few(grid.rows * grid.columns):
        _bits(mask, grid.rows, grid.columns).any(axis=1, out=flags)
    else:
        _flag_rows(mask, grid.columns, flags)
    return flags


def _bits(mask: Mask, rows: int, columns: int) -> Mask:
    """Returns the bits of a mask, each in a byte, (row, column)."""
    return np.unpackbits(mask, count=rows * columns, bitorder="little").reshape(rows, columns)


def _are_bytes(columns: int) -> bool:
    """Returns whether every row of a mask takes whole bytes."""
    return columns > 0 and columns % 8 == 0


def _whole(mask: Mask, columns: int) -> Mask:
    """Returns the bytes of each row of a mask whose rows start with a byte, (row, byte)."""
    return mask.reshape(-1, columns // 8)


def take_rows(mask: Mask, columns: int, flags: Flags) -> Mask:
    """Returns the mask of the flagged rows only."""
    if _are_bytes(columns):
        return _whole(mask, columns)[flags].reshape(-1)
    if few(len(flags) * columns):
        return np.packbits(_bits(mask, len(flags), columns)[flags], bitorder="little")
    taken = np.zeros(-(-int(np.count_nonzero(flags)) * columns // 8), np.uint8)
    _move_rows(mask, np.arange(len(flags))[flags], columns, taken, False)
    return taken


def put_rows(mask: Mask, columns: int, flags: Flags) -> Mask:
    """Returns the mask of all rows; the inverse of `take_rows`. Rows that are not flagged are empty."""
    if _are_bytes(columns):
        whole = np.zeros((len(flags), columns // 8), np.uint8)
        whole[flags] = _whole(mask, columns)
        return whole.reshape(-1)
    if few(len(flags) * columns):
        marked = np.zeros((len(flags), columns), np.uint8)
        marked[flags] = _bits(mask, int(np.count_nonzero(flags)), columns)
        return np.packbits(marked, bitorder="little")
    put = np.zeros(-(-len(flags) * columns // 8), np.uint8)
    _move_rows(mask, np.arange(len(flags))[flags], columns, put, True)
    return put


def spread(positions: Positions, start: int, rows: NDArray[np.int64], columns: int) -> NDArray[np.int64]:
    """Returns the positions in the whole matrix of rising positions behind `start` in a matrix of `rows`."""
    if few(len(positions)):
        places = positions.astype(np.int64) + start
        number = places // columns
        return places + (rows[number] - number) * columns
    found = np.empty(len(positions), np.int64)
    _spread(positions, start, rows, columns, found)
    return found


@compiled
def _spread(
    positions: Positions, start: int, rows: NDArray[np.int64], columns: int, found: NDArray[np.int64]
) -> None:
    row = start // columns
    for index in range(positions.size):
        position = np.int64(positions[index]) + start
        while position >= (row + 1) * columns:
            row += 1
        found[index] = position + (rows[row] - row) * columns


@compiled
def _flag_rows(mask: Mask, columns: int, flags: Flags) -> None:
    for row in range(flags.size):
        first, last = row * columns, (row + 1) * columns  # bits
        if first == last:
            continue
        found = mask[first >> 3] >> (first & 7)
        if first >> 3 == (last - 1) >> 3:
            found &= (1 << (last - first)) - 1
        else:
            for index in range((first >> 3) + 1, last >> 3):
                found |= mask[index]
            if last & 7:
                found |= mask[last >> 3] & ((1 << (last & 7)) - 1)
        flags[row] = found != 0


@compiled
def _move_rows(source: Mask, rows: NDArray[np.int64], columns: int, target: Mask, back: bool) -> None:
    """Moves the bits of the given rows next to each other or, if `back`, to their own places again."""
    for index in range(rows.size):
        place, packed = rows[index] * columns, index * columns
        origin, goal = (packed, place) if back else (place, packed)
        for done in range(0, columns, 8):
            width = min(8, columns - done)
            start, stop = origin + done, goal + done
            bits = np.int64(source[start >> 3])
            if (start & 7) + width > 8:
                bits |= np.int64(source[(start >> 3) + 1]) << 8
            bits = ((bits >> (start & 7)) & ((1 << width) - 1)) << (stop & 7)
            target[stop >> 3] |= np.uint8(bits & 255)
            if bits > 255:
                target[(stop >> 3) + 1] |= np.uint8(bits >> 8)
