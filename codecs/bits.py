"""Packs flags and small integers into bytes, lowest bit first, and unpacks and validates them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled, few
from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.sparse import LEVEL_DTYPES, Levels

Fields = NDArray[np.unsignedinteger[Any]]


def packed_bytes(count: int, width: int) -> int:
    """Returns the size in bytes of `count` fields of `width` bits."""
    return -(-count * width // 8)


def pack_fields(values: Fields, width: int) -> bytes:
    """Returns `values`, each below 2^width, packed without gaps; width is in 0..32."""
    if width == 1:
        return np.packbits(values.astype(np.uint8, copy=False), bitorder="little").tobytes()
    if width == 8:
        return values.astype(np.uint8, copy=False).tobytes()
    if few(len(values) * width):
        fields = (values[:, None] >> np.arange(width, dtype=values.dtype)) & 1  # (field, bit)
        return np.packbits(fields.astype(np.uint8), bitorder="little").tobytes()
    packed = np.empty(packed_bytes(len(values), width), np.uint8)
    _pack(values, width, packed)
    return packed.tobytes()


def unpack_fields(data: bytes, width: int, count: int) -> NDArray[np.uint8]:
    """Returns the `count` fields of `width` bits in `data`; width is in 0..8.

    Raises: DecodeError on a wrong length or a set bit after the last field.
    """
    packed = _checked(data, width, count)
    if width == 1:
        return np.unpackbits(packed, count=count, bitorder="little")
    if width == 8:
        return packed
    values = np.empty(count, np.uint8)
    _unpack_into(values, packed, width)
    return values


def unpack_wide_fields(data: bytes, width: int, count: int) -> NDArray[np.uint32]:
    """Returns the `count` fields of `width` bits in `data`; width is in 0..32. Raises: DecodeError."""
    values = np.empty(count, np.uint32)
    _unpack_into(values, _checked(data, width, count), width)
    return values


def _unpack_into(values: Fields, packed: NDArray[np.uint8], width: int) -> None:
    if few(len(values) * width):
        fields = np.unpackbits(packed, count=len(values) * width, bitorder="little")
        values[:] = fields.reshape(len(values), width) @ (1 << np.arange(width))
    else:
        _unpack(packed, width, values)


def _checked(data: bytes, width: int, count: int) -> NDArray[np.uint8]:
    if len(data) != packed_bytes(count, width):
        raise DecodeError(f"{len(data)} bytes, expected {packed_bytes(count, width)}")
    if count * width % 8 and data[-1] >> (count * width % 8):
        raise DecodeError("a bit is set after the last value")
    return np.frombuffer(data, np.uint8)


@compiled
def _pack(values: Fields, width: int, packed: NDArray[np.uint8]) -> None:
    held, filled, used = np.uint64(0), np.uint64(0), 0
    for value in values:
        held |= np.uint64(value) << filled
        filled += np.uint64(width)
        while filled >= np.uint64(8):
            packed[used] = np.uint8(held & np.uint64(255))
            held >>= np.uint64(8)
            filled -= np.uint64(8)
            used += 1
    if filled:
        packed[used] = np.uint8(held)


@compiled
def _unpack(packed: NDArray[np.uint8], width: int, values: Fields) -> None:
    held, filled, used = np.uint64(0), np.uint64(0), 0
    kept_bits = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    for index in range(values.size):
        while filled < np.uint64(width):
            held |= np.uint64(packed[used]) << filled
            filled += np.uint64(8)
            used += 1
        values[index] = held & kept_bits
        held >>= np.uint64(width)
        filled -= np.uint64(width)


def pack_levels(levels: Levels, bits: int) -> bytes:
    """Returns levels of 0 to 8, 16 or 32 bits packed without gaps, little-endian."""
    return pack_fields(levels, bits) if bits <= 8 else levels.tobytes()


def unpack_levels(data: bytes, bits: int, count: int) -> Levels:
    """Returns `count` levels; the inverse of `pack_levels`.

    Raises: DecodeError on a wrong length, a set padding bit, or a float level with the bit pattern 0.
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
    """Returns a validated mask of `entries` bits, still packed.

    Raises: DecodeError on a wrong length or a set padding bit.
    """
    if len(data) != packed_bytes(entries, 1):
        raise DecodeError(f"{len(data)} bytes, expected {packed_bytes(entries, 1)}")
    mask = np.frombuffer(data, np.uint8)
    if entries % 8 and mask[-1] >> (entries % 8):
        raise DecodeError("a bit is set after the last entry")
    return mask
