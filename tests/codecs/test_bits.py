"""Packed fields against the bitarray library, and every check of the unpacking."""

from collections.abc import Callable

import numpy as np
import pytest
from bitarray import bitarray
from bitarray.util import int2ba
from hypothesis import given
from hypothesis import strategies as st
from support.sparse_tensors import BITS, LAWS

from flexswitch.codecs.bits import (
    pack_fields,
    pack_levels,
    packed_bytes,
    unpack_fields,
    unpack_levels,
    unpack_mask,
    unpack_wide_fields,
)
from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.sparse import LEVEL_DTYPES

pytestmark = pytest.mark.usefixtures("passes")

Unpack = Callable[[bytes, int, int], np.ndarray]


def reference(values: list[int], width: int) -> bytes:
    fields = bitarray(endian="little")
    for value in values:
        fields.extend(int2ba(value, width, endian="little") if width else "")
    return fields.tobytes()


@pytest.mark.parametrize("width", range(33))
@LAWS
@given(data=st.data())
def test_fields_stand_end_to_end_the_lowest_bit_first(width: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, (1 << width) - 1), max_size=70))
    packed = pack_fields(np.array(values, np.uint32), width)
    assert packed == reference(values, width)
    assert len(packed) == packed_bytes(len(values), width)
    found = unpack_wide_fields(packed, width, len(values))
    assert (found.tolist(), found.dtype) == (values, np.uint32)
    if width <= 8:
        assert pack_fields(np.array(values, np.uint8), width) == packed
        narrow = unpack_fields(packed, width, len(values))
        assert (narrow.tolist(), narrow.dtype) == (values, np.uint8)


@pytest.mark.parametrize("bits", BITS)
def test_levels_of_any_bits_are_fields_of_so_many_bits(bits: int) -> None:
    values = [1, (1 << bits) - 1, 1 << max(bits - 1, 0), 1, 1] if bits else [0] * 5
    packed = pack_levels(np.array(values, LEVEL_DTYPES[bits]), bits)
    assert packed == reference(values, bits)
    assert unpack_levels(packed, bits, 5).tolist() == values
    assert unpack_levels(packed, bits, 5).dtype == LEVEL_DTYPES[bits]


def test_fields_of_no_bits_take_no_bytes() -> None:
    assert pack_fields(np.zeros(5, np.uint8), 0) == b""
    assert unpack_fields(b"", 0, 5).tolist() == [0, 0, 0, 0, 0]
    assert unpack_wide_fields(b"", 0, 5).tolist() == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("unpack", [unpack_fields, unpack_wide_fields])
def test_a_set_bit_behind_the_last_field_is_refused(unpack: Unpack) -> None:
    assert unpack(b"\x3f", 2, 3).tolist() == [3, 3, 3]
    for width, count, data in ((2, 3, b"\x7f"), (1, 7, b"\x80"), (3, 3, b"\0\2"), (5, 1, b"\x20")):
        with pytest.raises(DecodeError, match=r"^a bit is set after the last value$"):
            unpack(data, width, count)


def test_a_set_bit_behind_the_last_entry_is_refused() -> None:
    assert unpack_mask(b"\xff\x07", 11).tolist() == [255, 7]
    with pytest.raises(DecodeError, match=r"^a bit is set after the last entry$"):
        unpack_mask(b"\xff\x08", 11)


@pytest.mark.parametrize("length", [1, 3])
def test_a_wrong_number_of_bytes_is_refused(length: int) -> None:
    data = bytes(length)
    for read in (
        lambda: unpack_fields(data, 4, 3),
        lambda: unpack_fields(data, 8, 2),
        lambda: unpack_wide_fields(data, 13, 1),
        lambda: unpack_levels(data, 16, 1),
        lambda: unpack_mask(data, 9),
    ):
        with pytest.raises(DecodeError, match=rf"^{length} bytes, expected 2$"):
            read()


@pytest.mark.parametrize("bits", [16, 32])
def test_a_float_level_of_the_pattern_zero_is_refused(bits: int) -> None:
    with pytest.raises(DecodeError, match=r"^a kept value is zero$"):
        unpack_levels(b"\x01" + bytes(bits // 4 - 1), bits, 2)
