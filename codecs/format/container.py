"""The `.fsw` file: one compressed task vector in a safetensors container. FORMAT.md specifies it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.blocks import Grid, as_matrix, put_rows, spread
from flexswitch.codecs.codec import Codec, decoded_entries
from flexswitch.codecs.errors import ArtifactError, DecodeError, InputError
from flexswitch.codecs.format.artifact_writer import PackedTensor
from flexswitch.codecs.format.container_v1 import read_version_1
from flexswitch.codecs.format.records import (
    BLOCKS,
    EXTRA_PREFIX,
    METADATA_KEY,
    TABLE,
    ArtifactDocument,
    ArtifactHeader,
    BlockRecord,
    RawTensor,
    TensorRecord,
    TensorTable,
    crc32,
    document_version,
    parse_document,
    validated,
)
from flexswitch.codecs.format.safetensors_file import (
    DTYPE_BYTES,
    Header,
    RangeReader,
    read_header,
)
from flexswitch.codecs.registry import stored_codec
from flexswitch.codecs.sparse import LEVEL_DTYPES, Levels, SparseLayout, SparseTensor
from flexswitch.codecs.zstd import zstd_decompress

Read = TypeVar("Read")

# A table of blocks that are all alike grows so much; more is an attack on memory.
_TABLE_GROWTH, _TABLE_FREE_BYTES = 1000, 1 << 20


@dataclass(frozen=True)
class _Place:
    """A tensor's stored blocks, the row flags first: their records, layouts and offsets in the file."""

    blocks: list[BlockRecord]
    layouts: list[SparseLayout]
    offsets: list[int]


class Artifact:
    """An open `.fsw` file: its header, and any one tensor or block of it on demand."""

    def __init__(self, path: Path, header: ArtifactHeader, stored: Header, places: dict[str, _Place]) -> None:
        self.path = path
        self.header = header
        self._stored = stored
        self._places = places
        self._file = RangeReader(path, ArtifactError)

    def sparse(self, name: str) -> SparseTensor:
        """Returns one compressed tensor. Raises: DecodeError naming the file, the tensor and the block."""
        try:
            return self._whole(name)
        except MemoryError as error:
            raise DecodeError(
                f"{self.path}: tensor '{name}' of shape {self.header.tensors[name].shape} does not fit into "
                "memory"
            ) from error

    def _whole(self, name: str) -> SparseTensor:
        record = self.header.tensors[name]
        blocks = [self.block(name, index) for index in range(len(record.blocks))]
        mask = np.concatenate([np.empty(0, np.uint8), *(block.mask for block in blocks)])
        levels = np.concatenate([np.empty(0, LEVEL_DTYPES[record.bits]), *(block.levels for block in blocks)])
        flags = self.row_flags(name)
        if flags is not None:
            mask = put_rows(mask, as_matrix(tuple(record.shape)).columns, flags)
        return SparseTensor(tuple(record.shape), mask, levels, record.bits)

    def check(self, name: str) -> None:
        """Decodes every block of one compressed tensor, one at a time. Raises: DecodeError."""
        self.row_flags(name)
        for index in range(len(self.header.tensors[name].blocks)):
            self.block(name, index)

    def block(self, name: str, index: int) -> SparseTensor:
        """Returns one block of a compressed tensor, without its empty rows; reads nothing else.

        Raises: DecodeError naming the file, the tensor and the block.
        """
        number = index + (self.header.tensors[name].rows is not None)
        block = self._decode(name, number, _decoded)
        self._check_levels(name, number, block.levels)
        return block

    def entries(self, name: str) -> Iterator[tuple[int, NDArray[Any], Levels]]:
        """Yields, block by block, a start, the kept entries' rising places behind it, and their levels.

        Raises: DecodeError naming the file, the tensor and the block.
        """
        record, layouts = self.header.tensors[name], self._places[name].layouts
        flags = self.row_flags(name)
        full = None if flags is None else np.flatnonzero(flags)
        columns, start = as_matrix(tuple(record.shape)).columns, 0
        for number in range(record.rows is not None, len(layouts)):
            positions, levels = self._decode(name, number, decoded_entries)
            self._check_levels(name, number, levels)
            if full is None:
                yield start, positions, levels
            else:
                yield 0, spread(positions, start, full, columns), levels
            start += layouts[number].entries

    def row_flags(self, name: str) -> NDArray[np.bool_] | None:
        """Returns which rows are stored, (row,); None where all are. Raises: DecodeError."""
        if self.header.tensors[name].rows is None:
            return None
        flags = self._decode(name, 0, _decoded)
        return np.unpackbits(flags.mask, count=flags.layout.entries, bitorder="little").view(np.bool_)

    def packed(self, name: str) -> PackedTensor:
        """Returns one compressed tensor as it is stored. Raises: DecodeError."""
        record = self.header.tensors[name]
        return PackedTensor(
            record,
            b"".join(self._block_data(name, number) for number in range(len(self._places[name].blocks))),
        )

    def extra(self, name: str) -> RawTensor:
        """Returns one tensor that is stored as it is. Raises: DecodeError."""
        record, stored = self.header.extras[name], self._stored.tensors[EXTRA_PREFIX + name]
        data = self._checked(f"extra '{name}'", stored.offset, stored.size, record.crc32)
        return RawTensor(record.dtype, tuple(record.shape), data)

    def extra_bytes(self) -> int:
        """Returns the stored bytes of all extras."""
        return sum(self._stored.tensors[EXTRA_PREFIX + name].size for name in self.header.extras)

    def _decode(
        self, name: str, number: int, read: Callable[[Codec, dict[str, bytes], SparseLayout], Read]
    ) -> Read:
        block, layout = self._places[name].blocks[number], self._places[name].layouts[number]
        data = self._block_data(name, number)
        try:
            return read(stored_codec(block.codec, block.settings), {"data": data}, layout)
        except DecodeError as error:
            raise DecodeError(f"{self.path}: {self._called(name, number)}: {error}") from error

    def _check_levels(self, name: str, number: int, levels: Levels) -> None:
        """Raises: DecodeError where a kept entry is at the tensor's zero point."""
        zero = self.header.tensors[name].zero
        if zero is not None and (levels == zero).any():
            raise DecodeError(f"{self.path}: {self._called(name, number)}: a kept value is zero")

    def _block_data(self, name: str, number: int) -> bytes:
        block, offset = self._places[name].blocks[number], self._places[name].offsets[number]
        return self._checked(self._called(name, number) + ",", offset, block.size, block.crc32)

    def _called(self, name: str, number: int) -> str:
        """Returns what a stored block is called in messages."""
        has_rows = self.header.tensors[name].rows is not None
        block = "row flags" if has_rows and number == 0 else f"block {number - has_rows}"
        return f"tensor '{name}', {block}"

    def _checked(self, what: str, offset: int, size: int, expected: str) -> bytes:
        data = self._file.read(offset, size).tobytes()
        if crc32(data) != expected:
            raise DecodeError(
                f"{self.path}: {what} is damaged: its checksum is {crc32(data)}, expected {expected}; "
                "restore the file from a copy, or compress it again"
            )
        return data


def _decoded(codec: Codec, parts: dict[str, bytes], layout: SparseLayout) -> SparseTensor:
    return codec.decode(parts, layout)


def open_artifact(path: Path) -> Artifact:
    """Opens an artifact and checks its header; blocks are checked as they are read.

    Raises: InputError where there is no such file or it is no artifact; ArtifactError where it is damaged.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; expected an artifact (.fsw) that `flexswitch compress` wrote"
        )
    stored = read_header(path, ArtifactError)
    text = stored.metadata.get(METADATA_KEY)
    if text is None:
        raise InputError(f"{path}: not a flexswitch artifact: its metadata lacks the key '{METADATA_KEY}'")
    is_whole = document_version(path, text) == 1  # each tensor is one block
    if is_whole:
        header, offsets = read_version_1(path, text, stored)
    else:
        header, offsets = _read_header(path, text, stored)
    _check_extras(path, header, stored)
    places = {}
    for name, record in header.tensors.items():
        if record.kept > record.layout.entries or record.dtype not in DTYPE_BYTES:
            raise ArtifactError(
                f"{path}: tensor '{name}' of shape {record.shape} and dtype {record.dtype} "
                f"keeps {record.kept} entries; its header is damaged"
            )
        if record.zero is not None and record.bits > 8:
            raise ArtifactError(
                f"{path}: tensor '{name}' has a zero point and levels of {record.bits} bits; its header is "
                "damaged"
            )
        blocks = record.stored
        ends = accumulate((block.size for block in blocks), initial=offsets[name])
        layouts = [record.layout] if is_whole else _block_layouts(path, name, record)
        places[name] = _Place(blocks, layouts, list(ends))
    return Artifact(path, header, stored, places)


def _read_header(path: Path, text: str, stored: Header) -> tuple[ArtifactHeader, dict[str, int]]:
    """Returns the header of a file of version 2 or 3, and where each tensor begins."""
    document = parse_document(ArtifactDocument, path, text, stored.metadata)
    expected = {BLOCKS, TABLE, *(EXTRA_PREFIX + name for name in document.extras)}
    if expected != set(stored.tensors):
        odd = sorted(expected ^ set(stored.tensors))[0]
        raise ArtifactError(f"{path}: payload '{odd}' stands in only one of its two headers; it is damaged")
    table, blocks = stored.tensors[TABLE], stored.tensors[BLOCKS]
    for name, tensor in ((TABLE, table), (BLOCKS, blocks)):
        if tensor.dtype != "U8" or len(tensor.shape) != 1:
            raise ArtifactError(
                f"{path}: its tensor '{name}' is {tensor.dtype} {list(tensor.shape)}, expected U8 of one "
                "dimension"
            )
    data = RangeReader(path, ArtifactError).read(table.offset, table.size).tobytes()
    if table.size != document.table.size or crc32(data) != document.table.crc32:
        raise ArtifactError(f"{path}: its table of tensors is damaged: its size or checksum does not fit")
    try:
        listed = zstd_decompress(data, _TABLE_GROWTH * len(data) + _TABLE_FREE_BYTES).decode()
    except (DecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: its table of tensors does not decode: {error}") from error
    parsed = validated(TensorTable, path, listed)
    tensors = parsed.tensors
    if parsed.training is not None and document.version < 3:
        raise ArtifactError(
            f"{path}: its table has a record of learning, which version {document.version} has not; it is "
            "damaged"
        )
    offsets, end = {}, blocks.offset
    for name, record in tensors.items():
        if record.version > document.version:
            raise ArtifactError(
                f"{path}: tensor '{name}' has levels of {record.bits} bits and the zero point {record.zero}, "
                f"which version {document.version} has not; its header is damaged"
            )
        offsets[name] = end
        end += record.size
    if end != blocks.offset + blocks.size:
        raise ArtifactError(
            f"{path}: its table lists blocks of {end - blocks.offset:,} bytes, and it holds {blocks.size:,}; "
            "it is damaged"
        )
    described = document.model_dump(exclude={"format", "version", "table"})
    return ArtifactHeader(**described).model_copy(
        update={"tensors": tensors, "training": parsed.training}
    ), offsets


def _block_layouts(path: Path, name: str, record: TensorRecord) -> list[SparseLayout]:
    """Returns the layouts of a tensor's stored blocks. Raises: ArtifactError where they don't fit it."""
    grid = as_matrix(tuple(record.shape))
    layouts = []
    if record.rows is not None:
        layouts.append(SparseLayout((grid.rows,), record.rows.kept, 0))
        grid = Grid(min(grid.rows, record.rows.kept), grid.columns)
        if not record.rows.kept:
            raise ArtifactError(f"{path}: tensor '{name}' has row flags without a row; its header is damaged")
    if grid.count() != len(record.blocks):
        raise ArtifactError(
            f"{path}: tensor '{name}' of shape {record.shape} has {len(record.blocks)} blocks, expected "
            f"{grid.count()}; its header is damaged"
        )
    blocks = zip(grid.shapes(), record.blocks, strict=True)
    layouts += [SparseLayout(shape, block.kept, record.bits) for shape, block in blocks]
    for layout in layouts:
        if layout.kept > layout.entries:
            raise ArtifactError(
                f"{path}: tensor '{name}' has a block that keeps {layout.kept} of {layout.entries} entries; "
                "its header is damaged"
            )
    return layouts


def _check_extras(path: Path, header: ArtifactHeader, stored: Header) -> None:
    for name, extra in header.extras.items():
        found = stored.tensors[EXTRA_PREFIX + name]
        if (found.dtype, list(found.shape)) != (extra.dtype, extra.shape):
            raise ArtifactError(
                f"{path}: extra '{name}' is {found.dtype} {list(found.shape)} in one of its two headers and "
                f"{extra.dtype} {extra.shape} in the other; it is damaged"
            )
