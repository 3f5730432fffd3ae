"""Byte planes: decoding is the exact inverse of encoding, and invalid data is refused."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sparse_tensors import LAWS

from flexswitch.codecs.byte_planes import decode_planes, encode_planes
from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.zstd import zstd_compress

WEIGHTS = np.random.default_rng(0).normal(0, 0.02, 6000).astype("<f4")


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@LAWS
@given(data=st.data())
def test_decoding_is_the_inverse_of_encoding(width: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 300))
    values = data.draw(st.binary(min_size=count, max_size=count)) * width
    stored = encode_planes(values, width)
    assert decode_planes(stored, width, count) == values
    assert len(stored) <= len(values) + 1


def test_planes_that_do_not_compress_are_stored_unchanged_lowest_bytes_first() -> None:
    assert encode_planes(bytes([1, 2, 3, 4, 5, 6]), 2) == bytes([0, 1, 3, 5, 2, 4, 6])


def test_only_planes_that_get_smaller_are_frames() -> None:
    stored = encode_planes(WEIGHTS.tobytes(), 4)
    assert stored[0] == 0b1000  # sign and exponent
    high = WEIGHTS.view(np.uint8).reshape(-1, 4)[:, 3].tobytes()
    assert stored[1:9] == len(zstd_compress(high)).to_bytes(8, "little")
    assert len(stored) < 0.9 * WEIGHTS.nbytes
    assert decode_planes(stored, 4, len(WEIGHTS)) == WEIGHTS.tobytes()


def test_equal_numbers_take_hardly_any_bytes() -> None:
    ones = np.ones(1 << 20, "<f8").tobytes()
    stored = encode_planes(ones, 8)
    assert len(stored) < 1000
    assert decode_planes(stored, 8, 1 << 20) == ones


FRAME = zstd_compress(bytes(100))


def framed(frame: bytes, size: int | None = None) -> bytes:
    return b"\1" + (len(frame) if size is None else size).to_bytes(8, "little") + frame


@pytest.mark.parametrize(
    ("data", "count", "message"),
    [
        (b"", 0, "0 bytes, expected at least 1"),
        (b"\2", 0, "flags 0x2 of byte planes, expected 1 bits"),
        (b"\0" + bytes(99), 100, "100 bytes, expected at least 101"),
        (b"\0" + bytes(101), 100, "102 bytes, expected 101"),
        (b"\1" + bytes(7), 100, "8 bytes, expected at least 9"),
        (framed(FRAME, 1 << 63), 100, f"{9 + len(FRAME)} bytes, expected at least {9 + (1 << 63)}"),
        (framed(FRAME), 101, "a byte plane of 100 bytes, expected 101"),
        (framed(FRAME), 99, "a zstandard frame of 100 bytes, expected 1 to 99"),
        (framed(b""), 100, "a byte plane of 0 bytes, expected 100"),
        (framed(FRAME) + b"\0", 100, f"{10 + len(FRAME)} bytes, expected {9 + len(FRAME)}"),
    ],
)
def test_invalid_data_is_refused(data: bytes, count: int, message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_planes(data, 1, count)
    assert str(caught.value) == message


def test_a_frame_that_promises_too_much_takes_no_memory() -> None:
    promise = b"\xc0\x00" + (1 << 40).to_bytes(8, "little") + b"\x01\x00\x00"
    tracemalloc.start()
    with pytest.raises(DecodeError) as caught:
        decode_planes(framed(promise), 1, 1 << 40)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(caught.value) == f"a zstandard frame of {1 << 40} bytes, expected 1 to {len(promise) << 15}"
    assert peak < 1 << 20
