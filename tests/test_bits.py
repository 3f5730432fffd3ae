"""Packed fields against the bitarray library, and every check of the unpacking."""

import numpy as np
import pytest
from bitarray import bitarray
from bitarray.util import int2ba
from hypothesis import given
from hypothesis import strategies as st
from sparse_tensors import BITS, LAWS

from flexswitch.codecs import bits as bits_module
from flexswitch.codecs.bits import (
    count_bits,
    pack_fields,
    pack_levels,
    packed_bytes,
    unpack_fields,
    unpack_levels,
    unpack_mask,
)
from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.sparse import LEVEL_DTYPES


def reference(values: list[int], width: int) -> bytes:
    fields = bitarray(endian="little")
    for value in values:
        fields.extend(int2ba(value, width, endian="little"))
    return fields.tobytes()


@pytest.mark.parametrize("chunk", [8, 1 << 20])
@LAWS
@given(width=st.integers(1, 8), data=st.data())
def test_fields_stand_end_to_end_the_lowest_bit_first(chunk: int, width: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, (1 << width) - 1), max_size=70))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits_module, "_CHUNK", chunk)
        packed = pack_fields(np.array(values, np.uint8), width)
        assert packed == reference(values, width)
        assert len(packed) == packed_bytes(len(values), width)
        assert unpack_fields(packed, width, len(values)).tolist() == values


@pytest.mark.parametrize("bits", BITS)
def test_levels_of_any_bits_are_fields_of_so_many_bits(bits: int) -> None:
    values = [1, (1 << bits) - 1, 1 << (bits - 1), 1, 1]
    packed = pack_levels(np.array(values, LEVEL_DTYPES[bits]), bits)
    assert packed == reference(values, bits)
    assert unpack_levels(packed, bits, 5).tolist() == values
    assert unpack_levels(packed, bits, 5).dtype == LEVEL_DTYPES[bits]


def test_fields_of_no_bits_take_no_bytes() -> None:
    assert pack_fields(np.zeros(5, np.uint8), 0) == b""
    assert unpack_fields(b"", 0, 5).tolist() == [0, 0, 0, 0, 0]


def test_a_set_bit_behind_the_last_field_is_refused() -> None:
    assert unpack_fields(b"\x3f", 2, 3).tolist() == [3, 3, 3]
    with pytest.raises(DecodeError, match=r"^a bit is set behind the last value$"):
        unpack_fields(b"\x7f", 2, 3)
    with pytest.raises(DecodeError, match=r"^a bit is set behind the last entry$"):
        unpack_mask(b"\xff\x08", 11)


@pytest.mark.parametrize("length", [1, 3])
def test_a_wrong_number_of_bytes_is_refused(length: int) -> None:
    data = bytes(length)
    for read in (
        lambda: unpack_fields(data, 4, 3),
        lambda: unpack_levels(data, 16, 1),
        lambda: unpack_mask(data, 9),
    ):
        with pytest.raises(DecodeError, match=rf"^{length} bytes, expected 2$"):
            read()


@pytest.mark.parametrize("bits", [16, 32])
def test_a_float_level_of_the_pattern_zero_is_refused(bits: int) -> None:
    with pytest.raises(DecodeError, match=r"^a kept value is zero$"):
        unpack_levels(b"\x01" + bytes(bits // 4 - 1), bits, 2)


def test_bits_of_a_mask_are_counted() -> None:
    assert count_bits(unpack_mask(b"\xff\x05", 11)) == 10
    assert count_bits(unpack_mask(b"", 0)) == 0
    assert count_bits(np.full(1 << 17, 255, np.uint8)) == 1 << 20
