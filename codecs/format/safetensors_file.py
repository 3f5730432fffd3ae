"""Reads and validates safetensors headers, and writes safetensors files tensor by tensor.

Format: https://github.com/huggingface/safetensors, README "Format". The safetensors library validates each
file too. The code here also returns byte ranges, so that parts of a tensor can be read, and its messages
say what is wrong with a damaged file.
"""

import json
import math
import os
import struct
import weakref
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from flexswitch.codecs.errors import FlexswitchError, InputError
from flexswitch.codecs.format.documents import unique_names

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
_KNOWN = ", ".join(DTYPE_BYTES)
_MOST_DIMENSIONS = 64


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor is in a file: dtype by its safetensors name, byte offset and size."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class Header:
    """A file's tensors by name, in file order, and its metadata."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]


def read_header(path: Path, error: type[FlexswitchError]) -> Header:
    """Returns a file's header. Raises: as `RangeReader.header` does."""
    return RangeReader(path, error).header()


def _parsed_header(path: Path, error: type[FlexswitchError], text: bytes, total: int) -> Header:
    """Returns the header of a file of `total` bytes from its text, which begins at byte 8."""
    start = 8 + len(text)
    try:
        document = json.loads(text, object_pairs_hook=unique_names)
        metadata = document.pop("__metadata__", None) or {}  # JSON's null is allowed
        tensors = {name: _stored(entry, start) for name, entry in document.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as reason:
        raise error(f"{path}: not a safetensors file: its header does not parse ({reason})") from reason
    for name, entry in tensors.items():
        if entry.offset < start or entry.offset + entry.size > total:
            raise error(
                f"{path}: cut short, or its header lies: tensor '{name}' ends at byte "
                f"{entry.offset + entry.size:,} and the file at {total:,}; download or save it again"
            )
        if entry.dtype not in DTYPE_BYTES:
            raise error(f"{path}: tensor '{name}' has the dtype {entry.dtype}, expected one of {_KNOWN}")
        if math.prod(entry.shape) * DTYPE_BYTES[entry.dtype] != entry.size:
            raise error(
                f"{path}: its header lies: tensor '{name}' of shape {list(entry.shape)} and dtype "
                f"{entry.dtype} has {entry.size:,} bytes"
            )
    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as reason:
        raise error(f"{path}: not a valid safetensors file ({reason})") from reason
    except OSError:  # the library calls any failure to open a file a missing file
        path.open("rb").close()  # raises the system's own error
        raise
    return Header(tensors, metadata)


def _stored(entry: dict[str, Any], data_start: int) -> StoredTensor:
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"a shape of {len(shape)} sizes, expected {_MOST_DIMENSIONS} at most")
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in (start, end, *shape)):
        raise ValueError("a size or an offset is not a count below 2^63")
    return StoredTensor(str(entry["dtype"]), shape, data_start + start, end - start)


class SafetensorsWriter:
    """Writes tensors in the given order, and the header in front of them when the writer closes.

    reserve: bytes that are reserved for the header. A longer header moves the data inside the file, in
    pieces of `copy_bytes`; a shorter one is padded with spaces, which the format allows. checksums: the
    CRC-32 of each tensor that `add` has written, if `has_checksums` asks for them.
    """

    def __init__(
        self,
        path: Path,
        metadata: dict[str, str],
        reserve: int = 0,
        copy_bytes: int = 1 << 22,
        has_checksums: bool = False,
    ) -> None:
        self.metadata = metadata
        self.checksums: dict[str, str] = {}
        self._reserve, self._has_checksums = reserve, has_checksums
        self._copy_bytes = copy_bytes
        self._entries: dict[str, dict[str, Any]] = {}
        self._written = 0
        self._file: BinaryIO = path.open("w+b")
        self._file.seek(reserve)

    def add(
        self, name: str, dtype: str, shape: tuple[int, ...], chunks: Iterable[bytes | memoryview]
    ) -> None:
        """Appends one tensor, given as chunks of bytes. Raises: ValueError if their size does not fit."""
        if name in self._entries:
            raise ValueError(f"{name}: written twice")
        start, checksum = self._written, 0
        for chunk in chunks:
            self._file.write(chunk)
            self._written += len(chunk)
            checksum = zlib.crc32(chunk, checksum) if self._has_checksums else 0
        if self._written - start != math.prod(shape) * DTYPE_BYTES[dtype]:
            raise ValueError(f"{name}: {self._written - start} bytes for {dtype} {shape}")
        if self._has_checksums:
            self.checksums[name] = f"{checksum:08x}"
        self._entries[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [start, self._written],
        }

    def extend(self, name: str, data: bytes) -> None:
        """Appends bytes to the U8 tensor that was written last, or to a new one of that name."""
        entry = self._entries.setdefault(
            name, {"dtype": "U8", "shape": [0], "data_offsets": [self._written, self._written]}
        )
        if entry["data_offsets"][1] != self._written:
            raise ValueError(f"{name}: another tensor has been added since")
        self._file.write(data)
        self._written += len(data)
        entry["data_offsets"][1] = self._written
        entry["shape"] = [self._written - entry["data_offsets"][0]]

    def close(self) -> None:
        """Writes the header, which completes the file."""
        header = header_bytes(self._entries, self.metadata)
        if len(header) > self._reserve:
            _shift(self._file, self._reserve, self._written, len(header), self._copy_bytes)
        else:
            body = header[8:].ljust(self._reserve - 8)
            header = struct.pack("<Q", len(body)) + body
        self._file.seek(0)
        self._file.write(header)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


def header_bytes(entries: dict[str, dict[str, Any]], metadata: dict[str, str]) -> bytes:
    """Returns a header with its length prefix, padded with spaces to a multiple of 8 bytes."""
    document = {"__metadata__": metadata, **entries} if metadata else entries
    body = json.dumps(document, separators=(",", ":")).encode()
    body = body.ljust(-(-len(body) // 8) * 8)
    return struct.pack("<Q", len(body)) + body


def _shift(file: BinaryIO, start: int, size: int, target: int, step: int) -> None:
    """Moves `size` bytes from offset `start` up to `target`, from the end, so that none is overwritten."""
    for end in range(size, 0, -step):
        begin = max(0, end - step)
        file.seek(start + begin)
        chunk = file.read(end - begin)
        file.seek(target + begin)
        file.write(chunk)


class RangeReader:
    """Reads parts of one file from any thread. It is opened on first use and closed with the reader.

    A file that has taken its place after the first use is refused.
    """

    def __init__(self, path: Path, error: type[FlexswitchError], read_bytes: int = 1 << 30) -> None:
        self.path = path
        self.error = error
        self._read_bytes = read_bytes
        self._position, self._opening = Lock(), Lock()
        self._opened: int | None = None
        self._closing: weakref.finalize[[int], RangeReader] | None = None
        self._identity: tuple[int, ...] | None = None

    def open(self) -> None:
        """Opens the file now. Raises: OSError."""
        self._descriptor()

    def close(self) -> None:
        """Closes the file until it is used again, as a process may have only some hundred files open."""
        with self._opening:
            if self._closing is not None:
                self._closing()
            self._opened = self._closing = None

    def file_bytes(self) -> int:
        """Returns the size of the file."""
        return os.fstat(self._descriptor()).st_size

    def header(self) -> Header:
        """Returns the header of a safetensors file.

        Raises: the reader's error if the file is truncated or no safetensors file, or if its header has wrong
        sizes.
        """
        total = self.file_bytes()
        if total < 8:
            raise self.error(
                f"{self.path}: not a safetensors file: {total} bytes, expected a header of at least 8"
            )
        (length,) = struct.unpack("<Q", self._read(0, 8).tobytes())
        if length > total - 8:
            raise self.error(
                f"{self.path}: not a safetensors file, or cut short: its first bytes ask for a header of "
                f"{length:,} bytes, and {total - 8:,} follow; download or save it again"
            )
        return _parsed_header(self.path, self.error, self._read(8, length).tobytes(), total)

    def read(self, offset: int, size: int) -> NDArray[np.uint8]:
        """Returns `size` bytes at `offset`. Raises: the reader's error if the file has become shorter."""
        return self._read(offset, size)

    def _read(self, offset: int, size: int) -> NDArray[np.uint8]:
        data = np.empty(size, np.uint8)
        view, done = memoryview(data), 0  # type: ignore[arg-type]  # an array is a buffer
        while done < size:
            count = self._read_at(offset + done, view[done : done + self._read_bytes])
            if not count:
                raise self.error(f"{self.path}: ends at byte {offset + done:,}, expected {offset + size:,}")
            done += count
        return data

    def read_ahead(self, offset: int, size: int) -> None:
        """Asks the operating system to read a part into its cache, if it supports that."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor(), offset, size, os.POSIX_FADV_WILLNEED)

    def _read_at(self, offset: int, part: memoryview) -> int:
        """Fills a part of memory from an offset, as far as the file and the system go; returns the count."""
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor(), [part], offset)
        with self._position:  # one for all threads, where a system reads at the file's position only
            os.lseek(self._descriptor(), offset, os.SEEK_SET)
            data = os.read(self._descriptor(), len(part))
        part[: len(data)] = data
        return len(data)

    def _descriptor(self) -> int:
        with self._opening:
            if self._opened is None:
                self._opened = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                self._closing = weakref.finalize(self, os.close, self._opened)
                self._check_identity(self._opened)
            return self._opened

    def _check_identity(self, descriptor: int) -> None:
        """Raises: InputError if the file is not the one that was opened before."""
        found = os.fstat(descriptor)
        identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if self._identity not in (None, identity):
            raise InputError(f"{self.path}: was changed or replaced while it was read; run the command again")
        self._identity = identity
