"""Reads the `.fsw` file, one compressed task vector in a safetensors container. FORMAT.md specifies it."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.argument_types import PATH, check_argument, is_path
from flexswitch.codecs.blocks import as_matrix, put_rows, spread
from flexswitch.codecs.codec import Codec, decoded_entries
from flexswitch.codecs.errors import ArtifactError, DecodeError, InputError, not_found
from flexswitch.codecs.format.artifact_table import read_table
from flexswitch.codecs.format.artifact_writer import PackedTensor
from flexswitch.codecs.format.documents import parse_document
from flexswitch.codecs.format.exact_forms import PackedExact, exact_form, unpacked_block
from flexswitch.codecs.format.extra_forms import PackedExtra, unpacked_extra
from flexswitch.codecs.format.record_checks import block_layouts, check_exact, check_extra, check_record
from flexswitch.codecs.format.records import (
    DATA,
    METADATA_KEY,
    ArtifactDocument,
    ArtifactHeader,
    BlockRecord,
    PartRecord,
    RawTensor,
    crc32,
)
from flexswitch.codecs.format.safetensors_file import (
    RangeReader,
)
from flexswitch.codecs.format.tensor_names import check_stored_names
from flexswitch.codecs.registry import stored_codec
from flexswitch.codecs.sparse import LEVEL_DTYPES, Levels, SparseLayout, SparseTensor

Read = TypeVar("Read")


@dataclass(frozen=True)
class _Place:
    """Where a part's blocks are, the row flags first: their records, layouts and offsets in the file."""

    record: PartRecord
    called: str
    blocks: list[BlockRecord]
    layouts: list[SparseLayout]
    offsets: list[int]


class Artifact:
    """An open `.fsw` file. Tensors and blocks are read on demand; part: which of a tensor's parts.

    shared: the zoo's shared vector, by which the values of a task whose header names it are computed.
    """

    shared: "Artifact | None" = None

    def __init__(
        self,
        file: RangeReader,
        header: ArtifactHeader,
        extra_offsets: dict[str, int],
        places: dict[str, list[_Place]],
        exact_offsets: dict[str, list[int]],
    ) -> None:
        self.path = file.path
        self.header = header
        self._extra_offsets = extra_offsets
        self._places = places
        self._exact_offsets = exact_offsets
        self._file = file

    def renamed(self, task: str) -> "Artifact":
        """Returns the same artifact as that of a task of another name."""
        found = copy.copy(self)
        found.header = self.header.model_copy(update={"name": task})
        return found

    def hold(self) -> None:
        """Opens the file, which then can be read even if it is deleted. Raises: OSError."""
        self._file.open()

    def file_bytes(self) -> int:
        """Returns the size of the file."""
        return self._file.file_bytes()

    def sparse(self, name: str, part: int = 0) -> SparseTensor:
        """Returns one compressed tensor. Raises: DecodeError naming the file, the tensor and the block."""
        try:
            return self._whole(name, part)
        except MemoryError as error:
            raise DecodeError(
                f"{self.path}: tensor '{name}' of shape {self.header.tensors[name].shape} does not fit into "
                "memory"
            ) from error

    def _whole(self, name: str, part: int) -> SparseTensor:
        record = self._places[name][part].record
        blocks = [self.block(name, index, part) for index in range(len(record.blocks))]
        mask = np.concatenate([np.empty(0, np.uint8), *(block.mask for block in blocks)])
        levels = np.concatenate([np.empty(0, LEVEL_DTYPES[record.bits]), *(block.levels for block in blocks)])
        flags = self.row_flags(name, part)
        if flags is not None:
            mask = put_rows(mask, as_matrix(record.stored_shape).columns, flags)
        return SparseTensor(record.stored_shape, mask, levels, record.bits)

    def check(self, name: str) -> None:
        """Decodes every block of one compressed tensor, one at a time. Raises: DecodeError."""
        for part, place in enumerate(self._places[name]):
            self.row_flags(name, part)
            for index in range(len(place.record.blocks)):
                self.block(name, index, part)

    def block(self, name: str, index: int, part: int = 0) -> SparseTensor:
        """Returns one block of a compressed tensor, without its empty rows. Reads nothing else.

        Raises: DecodeError naming the file, the tensor and the block.
        """
        place = self._places[name][part]
        number = index + (place.record.rows is not None)
        block = self._decode(place, number, _decoded)
        self._check_levels(place, number, block.levels)
        return block

    def entries(self, name: str, part: int = 0) -> Iterator[tuple[int, NDArray[Any], Levels]]:
        """Yields for each block a start, the kept entries' rising positions relative to it, and their levels.

        Raises: DecodeError naming the file, the tensor and the block.
        """
        place = self._places[name][part]
        record, layouts = place.record, place.layouts
        flags = self.row_flags(name, part)
        full = None if flags is None else np.flatnonzero(flags)
        columns, start = as_matrix(record.stored_shape).columns, 0
        for number in range(record.rows is not None, len(layouts)):
            positions, levels = self._decode(place, number, decoded_entries)
            self._check_levels(place, number, levels)
            if full is None:
                yield start, positions, levels
            else:
                yield 0, spread(positions, start, full, columns), levels
            start += layouts[number].entries

    def row_flags(self, name: str, part: int = 0) -> NDArray[np.bool_] | None:
        """Returns which rows are stored, (row,), or None if all are. Raises: DecodeError."""
        place = self._places[name][part]
        if place.record.rows is None:
            return None
        flags = self._decode(place, 0, _decoded)
        return np.unpackbits(flags.mask, count=flags.layout.entries, bitorder="little").view(np.bool_)

    def extra(self, name: str) -> RawTensor:
        """Returns one of the task's own tensors. Raises: DecodeError naming the file and the tensor."""
        packed = self.packed_extra(name)
        try:
            return unpacked_extra(packed.record, packed.data)
        except DecodeError as error:
            raise DecodeError(f"{self.path}: extra '{name}': {error}") from error
        except MemoryError as error:
            raise DecodeError(
                f"{self.path}: extra '{name}' of shape {packed.record.shape} does not fit into memory"
            ) from error

    def packed_extra(self, name: str) -> PackedExtra:
        """Returns one of the task's own tensors as it is stored. Raises: DecodeError."""
        record = self.header.extras[name]
        data = self._checked(f"extra '{name}'", self._extra_offsets[name], record.size, record.crc32)
        return PackedExtra(record, data)

    def exact_block(self, name: str, index: int, base: bytes) -> bytes:
        """Returns the fine-tuned numbers of one block of a tensor that is stored exactly, as bytes.

        base: the base's numbers of the block, in the tensor's dtype. Raises: DecodeError naming the file, the
        tensor and the block.
        """
        record, called = self.header.exact[name], f"tensor '{name}', block {index}"
        block, offset = record.blocks[index], self._exact_offsets[name][index]
        data = self._checked(called + ",", offset, block.size, block.crc32)
        try:
            return unpacked_block(record, index, data, base)
        except DecodeError as error:
            raise DecodeError(f"{self.path}: {called}: {error}") from error

    def packed_tensor(self, name: str) -> PackedTensor:
        """Returns a compressed tensor as it is stored. Raises: DecodeError."""
        parts = self._places[name]
        data = [self._block_data(place, number) for place in parts for number in range(len(place.blocks))]
        return PackedTensor(self.header.tensors[name], b"".join(data))

    def packed_exact(self, name: str) -> PackedExact:
        """Returns a tensor that is stored exactly, as it is stored. Raises: DecodeError."""
        record, offsets = self.header.exact[name], self._exact_offsets[name]
        data = []
        for index, (block, offset) in enumerate(zip(record.blocks, offsets, strict=True)):
            called = f"tensor '{name}', block {index}"
            data.append(self._checked(called + ",", offset, block.size, block.crc32))
            try:
                exact_form(block.form)
            except DecodeError as error:
                raise DecodeError(f"{self.path}: {called}: {error}") from error
        return PackedExact(record, b"".join(data))

    def extra_bytes(self) -> int:
        """Returns the stored size of all extras."""
        return sum(record.size for record in self.header.extras.values())

    def _decode(self, place: _Place, number: int, read: Callable[[Codec, bytes, SparseLayout], Read]) -> Read:
        block, data = place.blocks[number], self._block_data(place, number)
        try:
            return read(stored_codec(block.codec, block.settings), data, place.layouts[number])
        except DecodeError as error:
            raise DecodeError(f"{self.path}: {_called(place, number)}: {error}") from error

    def _block_data(self, place: _Place, number: int) -> bytes:
        block, called = place.blocks[number], _called(place, number)
        return self._checked(called + ",", place.offsets[number], block.size, block.crc32)

    def _check_levels(self, place: _Place, number: int, levels: Levels) -> None:
        """Raises: DecodeError if a kept entry is at the tensor's zero point."""
        zero = place.record.zero
        if zero is not None and (levels == zero).any():
            raise DecodeError(f"{self.path}: {_called(place, number)}: a kept value is zero")

    def _checked(self, what: str, offset: int, size: int, expected: str) -> bytes:
        data = self._file.read(offset, size).tobytes()
        if crc32(data) != expected:
            raise DecodeError(
                f"{self.path}: {what} is damaged: its checksum is {crc32(data)}, expected {expected}; "
                "restore the file from a copy, or compress it again"
            )
        return data


def _called(place: _Place, number: int) -> str:
    """Returns the name of a stored block in messages."""
    has_rows = place.record.rows is not None
    block = "row flags" if has_rows and number == 0 else f"block {number - has_rows}"
    return f"{place.called}, {block}"


def _decoded(codec: Codec, data: bytes, layout: SparseLayout) -> SparseTensor:
    return codec.decode(data, layout)


def open_artifact(path: str | Path) -> Artifact:
    """Opens an artifact and checks its header; blocks are checked when they are read.

    Raises: InputError if there is no such file or it is no artifact; ArtifactError if it is damaged.
    """
    check_argument("open_artifact", "path", path, is_path(path), PATH)
    path = Path(path)
    if not path.is_file():
        raise InputError(not_found(path, "an artifact (.fsw) that `flexswitch compress` wrote"))
    file = RangeReader(path, ArtifactError)
    stored = file.header()
    text = stored.metadata.get(METADATA_KEY)
    if text is None:
        raise InputError(f"{path}: not a flexswitch artifact: its metadata lacks the key '{METADATA_KEY}'")
    document = parse_document(ArtifactDocument, path, text, stored.metadata)
    table = read_table(file, document, stored)
    file.close()
    described = document.model_dump(exclude={"format", "version", "table"})
    header = ArtifactHeader(**described).model_copy(update=dict(table))
    names = [*header.tensors, *header.exact]
    check_stored_names(path, names, header.extras, header.model, ArtifactError)
    offset = stored.tensors[DATA].offset
    extra_offsets: dict[str, int] = {}
    places: dict[str, list[_Place]] = {}
    for name, extra in header.extras.items():
        check_extra(path, name, extra)
        extra_offsets[name] = offset
        offset += extra.size
    for name, record in header.tensors.items():
        check_record(path, name, record, header.shared)
        places[name] = []
        for number, part in enumerate(record.parts):
            called = f"tensor '{name}'" + (f", part {number}" if record.more else "")
            offsets = list(accumulate((block.size for block in part.stored), initial=offset))
            layouts = block_layouts(path, name, part)
            places[name].append(_Place(part, called, part.stored, layouts, offsets[:-1]))
            offset = offsets[-1]
    exact_offsets = {}
    for name, exact in header.exact.items():
        check_exact(path, name, exact)
        exact_offsets[name] = list(accumulate((block.size for block in exact.blocks), initial=offset))[:-1]
        offset += exact.size
    return Artifact(file, header, extra_offsets, places, exact_offsets)
