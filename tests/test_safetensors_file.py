"""Hostile and damaged safetensors headers, and the writer against the safetensors library."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from flexswitch.codecs import safetensors_file
from flexswitch.codecs.errors import ArtifactError, InputError
from flexswitch.codecs.safetensors_file import (
    DTYPE_BYTES,
    Header,
    RangeReader,
    SafetensorsWriter,
    StoredTensor,
    header_bytes,
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
    ("length", "told"), [(3, "3"), (1 << 40, "1,099,511,627,776"), (2**64 - 1, "18,446,744,073,709,551,615")]
)
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, length: int, told: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    assert message(path) == (
        f"not a safetensors file, or cut short: its first bytes ask for a header of {told} bytes, and 2 "
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
    ("tensor", "told"),
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
    tmp_path: Path, tensor: dict[str, object], told: str
) -> None:
    assert message(file_of(tmp_path, {"a": tensor}, b"ab")) == f"its header lies: tensor 'a' {told}"


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


def test_a_tensor_named_twice_is_refused_or_read_as_one(tmp_path: Path) -> None:
    one, two = (f'"a": {json.dumps(entry(offsets=offsets))}' for offsets in [(0, 2), (2, 4)])
    assert message(file_of(tmp_path, "{" + one + "," + two + "}", b"abcd")).startswith(NOT_VALID)
    path = file_of(tmp_path, "{" + one + "," + one + "}", b"ab")
    assert list(read_header(path, ArtifactError).tensors) == ["a"]


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


# The writer

ARRAYS: dict[str, NDArray[Any]] = {
    "wéight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "empty": np.empty((0, 7), np.float16),
    "one": np.array(7, np.int64),
    "bytes": np.arange(13, dtype=np.uint8),
    "flags": np.array([True, False, True]),
    "also empty": np.empty(0, np.float64),
}
DTYPES = {
    "float32": "F32", "float16": "F16", "int64": "I64", "uint8": "U8", "bool": "BOOL", "float64": "F64",
}  # fmt: skip
METADATA = {"format": "np", "täsk": '{"a": "\\"b\\""}'}


def write(path: Path, metadata: dict[str, str], reserve: int) -> None:
    with SafetensorsWriter(path, metadata, reserve) as writer:
        for name, array in ARRAYS.items():
            data = array.tobytes()
            chunks: list[bytes | memoryview] = [data[:5], b"", memoryview(data)[5:]]
            writer.add(name, DTYPES[array.dtype.name], array.shape, chunks)


def needed() -> int:
    """Returns the bytes of the header that `write` needs."""
    entries, used = {}, 0
    for name, array in ARRAYS.items():
        dtype, shape = DTYPES[array.dtype.name], list(array.shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [used, used + array.nbytes]}
        used += array.nbytes
    return len(header_bytes(entries, METADATA))


@pytest.mark.parametrize("copy_bytes", [1, 7, 64, 1 << 22])
@pytest.mark.parametrize("spare", [None, -8, -1, 0, 1, 8, 1000], ids=str)
def test_the_safetensors_library_reads_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy_bytes: int, spare: int | None
) -> None:
    monkeypatch.setattr(safetensors_file, "_COPY_BYTES", copy_bytes)
    path = tmp_path / "written.safetensors"
    reserve = 0 if spare is None else needed() + spare
    write(path, METADATA, reserve)
    found = load_file(path)
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
    with safe_open(path, framework="np") as opened:
        assert opened.metadata() == METADATA
    assert path.stat().st_size == max(reserve, needed()) + sum(array.nbytes for array in ARRAYS.values())


@pytest.mark.parametrize("reserve", [1, 8, 9, 100])
def test_a_reserve_too_small_gives_the_same_bytes_as_none(tmp_path: Path, reserve: int) -> None:
    write(tmp_path / "none", METADATA, 0)
    write(tmp_path / "small", METADATA, reserve)
    assert (tmp_path / "small").read_bytes() == (tmp_path / "none").read_bytes()


def test_the_header_may_be_told_after_the_tensors(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "file", {}) as writer:
        writer.add("a", "U8", (2,), [b"ab"])
        writer.metadata = {"later": "yes"}
    header = read_header(tmp_path / "file", InputError)
    assert header.metadata == {"later": "yes"}
    assert header.tensors["a"] == StoredTensor("U8", (2,), (tmp_path / "file").stat().st_size - 2, 2)


def test_a_file_without_tensors_or_metadata_is_written(tmp_path: Path) -> None:
    SafetensorsWriter(tmp_path / "file", {}).close()
    assert (tmp_path / "file").read_bytes() == struct.pack("<Q", 8) + b"{}      "
    assert load_file(tmp_path / "file") == {}


@pytest.mark.parametrize("name", DTYPE_BYTES)
def test_the_safetensors_library_knows_each_dtype_by_its_size(tmp_path: Path, name: str) -> None:
    with SafetensorsWriter(tmp_path / "file", {}) as writer:
        writer.add("a", name, (3,), [bytes(3 * DTYPE_BYTES[name])])
    assert read_header(tmp_path / "file", InputError).tensors["a"].dtype == name


def test_a_tensor_written_twice_is_a_bug(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "file", {}) as writer:
        writer.add("a", "U8", (2,), [b"ab"])
        with pytest.raises(ValueError, match=r"^a: written twice$"):
            writer.add("a", "U8", (2,), [b"ab"])


def test_bytes_that_do_not_fill_a_tensor_are_a_bug(tmp_path: Path) -> None:
    told = r"^a: 2 bytes for F32 \(2,\)$"
    with SafetensorsWriter(tmp_path / "file", {}) as writer, pytest.raises(ValueError, match=told):
        writer.add("a", "F32", (2,), [b"ab"])


def test_a_tensor_grows_until_another_is_added(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "file", {}) as writer:
        writer.add("first", "I16", (1,), [b"ab"])
        for data in (b"cd", b"", b"efg"):
            writer.extend("grown", data)
        writer.add("last", "U8", (1,), [b"h"])
        with pytest.raises(ValueError, match=r"^grown: another tensor has been added since$"):
            writer.extend("grown", b"i")
    found = load_file(tmp_path / "file")
    assert {name: array.tobytes() for name, array in found.items()} == {
        "first": b"ab",
        "grown": b"cdefg",
        "last": b"h",
    }
    assert (found["grown"].dtype, found["grown"].shape) == (np.uint8, (5,))


def test_a_tensor_may_grow_by_nothing(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "file", {}) as writer:
        writer.extend("empty", b"")
        writer.add("full", "U8", (1,), [b"a"])
    assert {name: array.tobytes() for name, array in load_file(tmp_path / "file").items()} == {
        "empty": b"",
        "full": b"a",
    }


def test_a_tensor_that_grew_is_not_added_again(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "file", {}) as writer:
        writer.extend("a", b"b")
        with pytest.raises(ValueError, match=r"^a: written twice$"):
            writer.add("a", "U8", (1,), [b"c"])


def test_no_header_is_written_where_the_writing_failed(tmp_path: Path) -> None:
    def fail_halfway() -> None:
        with SafetensorsWriter(tmp_path / "file", {}, reserve=64) as writer:
            writer.add("a", "U8", (2,), [b"ab"])
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    assert (tmp_path / "file").read_bytes() == bytes(64) + b"ab"
