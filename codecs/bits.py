"""Packs flags and small integers into bytes, the lowest bit first, and unpacks them with every check."""

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.sparse import LEVEL_DTYPES, Levels

_CHUNK = 1 << 20  # values unpacked at a time; a multiple of 8, so that chunks end on byte borders


def packed_bytes(count: int, width: int) -> int:
    """Returns the bytes that `count` fields of `width` bits take."""
    return -(-count * width // 8)


def pack_fields(values: NDArray[np.uint8], width: int) -> bytes:
    """Returns `values`, each below 2^width with width in 0..8, packed end to end."""
    if width == 0:
        return b""
    if width == 8:
        return values.tobytes()
    shifts = np.arange(width, dtype=np.uint8)
    chunks = []
    for start in range(0, len(values), _CHUNK):
        bits = (values[start : start + _CHUNK, None] >> shifts) & 1  # (values, width)
        chunks.append(np.packbits(bits, bitorder="little").tobytes())
    return b"".join(chunks)


def unpack_fields(data: bytes, width: int, count: int) -> NDArray[np.uint8]:
    """Returns the `count` fields of `width` bits, width in 0..8, that `data` holds.

    Raises: DecodeError where `data` has another length, or a set bit behind the last field.
    """
    if len(data) != packed_bytes(count, width):
        raise DecodeError(f"{len(data)} bytes, expected {packed_bytes(count, width)}")
    packed = np.frombuffer(data, np.uint8)
    if width == 0:
        return np.zeros(count, np.uint8)
    if width == 8:
        return packed
    if count * width % 8 and packed[-1] >> (count * width % 8):
        raise DecodeError("a bit is set behind the last value")
    values = np.empty(count, np.uint8)
    weights = (1 << np.arange(width)).astype(np.uint8)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        chunk = packed[start * width // 8 : packed_bytes(start + size, width)]
        bits = np.unpackbits(chunk, count=size * width, bitorder="little")
        np.matmul(bits.reshape(size, width), weights, out=values[start : start + size])
    return values


def pack_levels(levels: Levels, bits: int) -> bytes:
    """Returns levels of 1, 2, 4, 8, 16 or 32 bits packed end to end, little-endian."""
    return pack_fields(levels.astype(np.uint8), bits) if bits <= 8 else levels.tobytes()


def unpack_levels(data: bytes, bits: int, count: int) -> Levels:
    """Returns `count` levels; the inverse of `pack_levels`.

    Raises: DecodeError on a wrong length, a set padding bit, or a float level with the pattern 0.
    """
    if bits <= 8:
        return unpack_fields(data, bits, count)
    if len(data) != packed_bytes(count, bits):
        raise DecodeError(f"{len(data)} bytes, expected {packed_bytes(count, bits)}")
    levels: Levels = np.frombuffer(data, LEVEL_DTYPES[bits])
    if not levels.all():
        raise DecodeError("a kept value is zero")
    return levels


def unpack_mask(data: bytes, entries: int) -> NDArray[np.uint8]:
    """Returns a packed mask of `entries` bits as it is, after checking it.

    Raises: DecodeError on a wrong length or a set padding bit.
    """
    if len(data) != packed_bytes(entries, 1):
        raise DecodeError(f"{len(data)} bytes, expected {packed_bytes(entries, 1)}")
    mask = np.frombuffer(data, np.uint8)
    if entries % 8 and mask[-1] >> (entries % 8):
        raise DecodeError("a bit is set behind the last entry")
    return mask


def count_bits(mask: NDArray[np.uint8]) -> int:
    """Returns how many bits of a packed mask are set."""
    return int(np.bitwise_count(mask).sum(dtype=np.int64))
