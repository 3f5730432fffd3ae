"""Quantises the rows of a matrix: levels of b bits, symmetric about 0, and a scale for each row.

The scale is the one of least squared error among a few: beyond the largest level, values are clipped.
"""

import numpy as np

from flexswitch.codecs.codec import PayloadReader
from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.zstd import zstd_compress, zstd_decompress

WIDTHS = range(2, 9)
_SHRUNK = np.linspace(1, 0.5, 11)  # of the scale at which nothing is clipped


def encode_rows(values: FloatArray, bits: int) -> bytes:
    """Returns finite values (row, column): float32 scales (row,), then a frame of the levels in bytes."""
    largest, wide = (1 << bits - 1) - 1, values.astype(np.float64)
    peak = np.abs(wide).max(axis=1, initial=0.0) / largest  # (row,)
    best, scales = np.full(len(wide), np.inf), np.zeros(len(wide), np.float32)
    for shrunk in _SHRUNK:
        tried = (shrunk * peak).astype(np.float32)
        error = np.square(wide - _levels(wide, tried, largest) * tried[:, None]).sum(axis=1)  # (row,)
        scales, best = np.where(error < best, tried, scales), np.minimum(error, best)
    codes = (_levels(wide, scales, largest) + largest).astype(np.uint8)
    return scales.astype("<f4").tobytes() + zstd_compress(codes.tobytes())


def decode_rows(data: bytes, rows: int, columns: int, bits: int) -> FloatArray:
    """Returns the values, (row, column): scale times level, in float32. Raises: DecodeError."""
    reader, largest = PayloadReader(data), (1 << bits - 1) - 1
    scales = np.frombuffer(reader.take(4 * rows), "<f4")
    content = zstd_decompress(reader.rest(), rows * columns)
    codes = np.frombuffer(content, np.uint8)
    if len(codes) != rows * columns or (codes > 2 * largest).any():
        raise DecodeError(f"{len(codes)} levels, expected {rows * columns}, each at most {2 * largest}")
    if not (np.isfinite(scales) & (scales >= 0)).all():
        raise DecodeError("a scale is negative or not finite")
    levels = codes.reshape(rows, columns).astype(np.float32) - np.float32(largest)
    with np.errstate(over="ignore"):
        values: FloatArray = scales[:, None] * levels
    return values


def _levels(values: np.ndarray, scales: FloatArray, largest: int) -> np.ndarray:
    """Returns the nearest levels, halves to even, (row, column)."""
    safe = np.where(scales > 0, scales, 1).astype(np.float64)
    return np.clip(np.rint(values / safe[:, None]), -largest, largest)
