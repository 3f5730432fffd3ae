"""The safetensors writer against the safetensors library."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.safetensors_file import (
    DTYPE_BYTES,
    SafetensorsWriter,
    StoredTensor,
    header_bytes,
    read_header,
)

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


def write(path: Path, metadata: dict[str, str], reserve: int, copy_bytes: int = 1 << 22) -> None:
    with SafetensorsWriter(path, metadata, reserve, copy_bytes) as writer:
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
    tmp_path: Path, copy_bytes: int, spare: int | None
) -> None:
    path = tmp_path / "written.safetensors"
    reserve = 0 if spare is None else needed() + spare
    write(path, METADATA, reserve, copy_bytes)
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


def test_the_header_may_be_given_after_the_tensors(tmp_path: Path) -> None:
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
    expected = r"^a: 2 bytes for F32 \(2,\)$"
    with SafetensorsWriter(tmp_path / "file", {}) as writer, pytest.raises(ValueError, match=expected):
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
