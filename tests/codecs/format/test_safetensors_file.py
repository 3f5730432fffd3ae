"""Hostile and damaged safetensors headers, and where a header says that tensors lie."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from flexswitch.codecs.errors import ArtifactError, InputError
from flexswitch.codecs.format.safetensors_file import (
    Header,
    RangeReader,
    read_header,
)

NOT_PARSED = "not a safetensors file: its header does not parse"
NOT_VALID = "not a valid safetensors file"
NO_COUNT = f"{NOT_PARSED} (a size or an offset is not a count below 2^63)"


def file_of(folder: Path, header: str | bytes | dict[str, Any], data: bytes = b"") -> Path:
    if isinstance(header, dict):
        header = json.dumps(header)
    text = header.encode() if isinstance(header, str) else header
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape: object = (2,), offsets: object = (0, 2), dtype: object = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def message(path: Path) -> str:
    """Returns the one line that reading a header ends with, behind the file's name."""
    with pytest.raises(ArtifactError) as caught:
        read_header(path, ArtifactError)
    assert type(caught.value) is ArtifactError
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize("length", [0, 1, 7])
def test_a_file_shorter_than_its_first_number_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(length))
    assert message(path) == f"not a safetensors file: {length} bytes, expected a header of at least 8"


@pytest.mark.parametrize(
    ("length", "expected"),
    [(3, "3"), (1 << 40, "1,099,511,627,776"), (2**64 - 1, "18,446,744,073,709,551,615")],
)
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, length: int, expected: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    assert message(path) == (
        f"not a safetensors file, or cut short: its first bytes ask for a header of {expected} bytes, and 2 "
        "follow; download or save it again"
    )


@pytest.mark.parametrize(
    "header",
    [
        "", "   ", "{", "[]", "7", "null", '"text"', "{]}", "\0\0", b"\xff\xfe", "[" * 100_000,
        '{"a": null}', '{"a": []}', '{"a": {}}', '{"a": {"dtype": "U8", "shape": [2]}}',
    ],
    ids=lambda header: repr(header)[:24],
)  # fmt: skip
def test_a_header_that_is_no_json_of_tensors_is_refused(tmp_path: Path, header: str | bytes) -> None:
    assert message(file_of(tmp_path, header, b"ab")).startswith(f"{NOT_PARSED} (")


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ([2], [-2, 0]),
        ([-2], [0, 2]),
        ([-1, -2], [0, 2]),
        ([2.0], [0, 2]),
        ([True, 2], [0, 2]),
        (["2"], [0, 2]),
        ([2], [0, None]),
        ([2], [0, 2.0]),
        ([0, 1 << 63], [0, 0]),
        ([2], [0, 10**4299]),
        ([int("9" * 4300)], [0, 2]),
    ],
)
def test_sizes_that_are_no_counts_are_refused(tmp_path: Path, shape: object, offsets: object) -> None:
    assert message(file_of(tmp_path, {"a": entry(shape, offsets)}, b"ab")) == NO_COUNT


@pytest.mark.parametrize("offsets", [[0], [0, 1, 2], [], 2, None])
def test_offsets_that_are_no_pair_are_refused(tmp_path: Path, offsets: object) -> None:
    assert message(file_of(tmp_path, {"a": entry(offsets=offsets)}, b"ab")).startswith(f"{NOT_PARSED} (")


def test_a_number_of_too_many_digits_is_refused(tmp_path: Path) -> None:
    header = '{"a":{"dtype":"U8","shape":[%s],"data_offsets":[0,2]}}' % ("9" * 5000)
    assert message(file_of(tmp_path, header, b"ab")).startswith(f"{NOT_PARSED} (")


def test_a_tensor_that_ends_behind_the_file_is_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path, {"a": entry([1 << 20], [0, 1 << 20])}, b"ab")
    total = path.stat().st_size
    assert message(path) == (
        f"cut short, or its header lies: tensor 'a' ends at byte {total - 2 + (1 << 20):,} and the file at "
        f"{total:,}; download or save it again"
    )


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (entry([3]), "of shape [3] and dtype U8 has 2 bytes"),
        (entry([2], dtype="F32"), "of shape [2] and dtype F32 has 2 bytes"),
        (entry([], dtype="U8"), "of shape [] and dtype U8 has 2 bytes"),
        (entry([2, 0]), "of shape [2, 0] and dtype U8 has 2 bytes"),
        (entry([2], [2, 0]), "of shape [2] and dtype U8 has -2 bytes"),
        (entry([1 << 62, 1 << 62]), f"of shape [{1 << 62}, {1 << 62}] and dtype U8 has 2 bytes"),
    ],
)
def test_a_size_that_does_not_fit_shape_and_dtype_is_refused(
    tmp_path: Path, tensor: dict[str, object], expected: str
) -> None:
    assert message(file_of(tmp_path, {"a": tensor}, b"ab")) == f"its header lies: tensor 'a' {expected}"


@pytest.mark.parametrize("dtype", ["X9", "C64", None, ["U8"]])
def test_a_dtype_that_is_not_known_is_named(tmp_path: Path, dtype: object) -> None:
    known = "BOOL, U8, I8, F8_E4M3, F8_E5M2, I16, U16, F16, BF16, I32, U32, F32, I64, U64, F64"
    found = message(file_of(tmp_path, {"a": entry(dtype=dtype)}, b"ab"))
    assert found == f"tensor 'a' has the dtype {dtype}, expected one of {known}"


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": entry(), "b": entry()}, b"ab"),
        ({"a": entry(), "b": entry(offsets=[1, 3])}, b"abc"),
        ({"a": entry(), "b": entry(offsets=[3, 5])}, b"abcde"),
        ({"a": entry(offsets=[1, 3])}, b"abc"),
        ({"a": entry()}, b"abc"),
        ({}, b"a"),
        ({"__metadata__": []}, b""),
        ({"__metadata__": "text"}, b""),
        ({"__metadata__": {"key": 1}}, b""),
        ({"__metadata__": {"key": None}}, b""),
        ("{}".encode("utf-16"), b""),
        ('{"\\ud800": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}', b"ab"),
    ],
    ids=[
        "one range used twice", "overlap", "hole", "hole at the start", "bytes behind the last tensor",
        "bytes without tensors", "metadata a list",
        "metadata a text", "metadata of numbers", "metadata of nulls", "utf-16", "half a character",
    ],
)  # fmt: skip
def test_what_the_safetensors_library_refuses_is_refused(
    tmp_path: Path, header: str | bytes | dict[str, Any], data: bytes
) -> None:
    assert message(file_of(tmp_path, header, data)).startswith(f"{NOT_VALID} (")


def test_a_tensor_named_twice_is_refused(tmp_path: Path) -> None:
    one, two = (f'"a": {json.dumps(entry(offsets=offsets))}' for offsets in [(0, 2), (2, 4)])
    expected = f"{NOT_PARSED} (the name 'a' stands twice in an object)"
    assert message(file_of(tmp_path, "{" + one + "," + two + "}", b"abcd")) == expected
    assert message(file_of(tmp_path, "{" + one + "," + one + "}", b"ab")) == expected


def test_metadata_of_null_is_no_metadata(tmp_path: Path) -> None:
    assert read_header(file_of(tmp_path, {"__metadata__": None}), InputError) == Header({}, {})


def test_the_error_raised_is_the_one_asked_for(tmp_path: Path) -> None:
    path = file_of(tmp_path, "{")
    with pytest.raises(InputError, match=NOT_PARSED):
        read_header(path, InputError)


def test_every_truncation_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(
        {"a": np.arange(5, dtype=np.float32), "b": np.arange(3, dtype=np.int64)}, path, {"key": "value"}
    )
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert message(path)


def test_a_header_tells_where_each_tensor_lies(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    arrays: dict[str, NDArray[Any]] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(0.5, np.float16),
        "c": np.empty((0, 4), np.int64),
    }
    save_file(arrays, path, {"key": "value"})
    header = read_header(path, InputError)
    assert header.metadata == {"key": "value"}
    assert set(header.tensors) == set(arrays)
    for name, stored in header.tensors.items():
        assert stored.shape == arrays[name].shape
        data = RangeReader(path, InputError).read(stored.offset, stored.size)
        assert data.tobytes() == arrays[name].tobytes()
