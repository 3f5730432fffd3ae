"""Writes an artifact, the `.fsw` file of one compressed task vector; container.py reads it."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from flexswitch.codecs.format.records import (
    BLOCKS,
    CHECKSUM_KEY,
    EXTRA_PREFIX,
    METADATA_KEY,
    TABLE,
    ArtifactDocument,
    ArtifactHeader,
    BlockRecord,
    ExtraRecord,
    RawTensor,
    TableRecord,
    TensorRecord,
    TensorTable,
    crc32,
    float32_scale,
)
from flexswitch.codecs.format.safetensors_file import SafetensorsWriter
from flexswitch.codecs.sparse import SparseTensor
from flexswitch.codecs.storage import StoredBlock, StoredForm
from flexswitch.codecs.zstd import zstd_compress

_TABLE_LEVEL = 19


@dataclass(frozen=True)
class PackedTensor:
    """A compressed tensor as it goes into an artifact: its record, and the bytes of all its blocks."""

    record: TensorRecord
    data: bytes


def packed_tensor(
    sparse: SparseTensor, form: StoredForm, scale: float, dtype: str, zero: int | None = None
) -> PackedTensor:
    """Returns a tensor's record and bytes; dtype is the fine-tuned checkpoint's, zero its zero point."""
    record = TensorRecord(
        shape=list(sparse.shape),
        dtype=dtype,
        bits=sparse.bits,  # type: ignore[arg-type]  # pydantic checks it
        scale=float32_scale(scale),
        zero=zero,
        rows=_block_record(form.rows) if form.rows else None,
        blocks=[_block_record(block) for block in form.blocks],
    )
    data = [block.data for block in ([form.rows] if form.rows else []) + list(form.blocks)]
    return PackedTensor(record, b"".join(data))


def _block_record(block: StoredBlock) -> BlockRecord:
    return BlockRecord(
        codec=block.codec.name,
        settings=dict(vars(block.codec)),
        kept=block.kept,
        size=len(block.data),
        crc32=crc32(block.data),
    )


class ArtifactWriter:
    """Writes an artifact tensor by tensor; nothing but the records is held in memory."""

    def __init__(self, path: Path, header: ArtifactHeader) -> None:
        self._header = header
        self._tensors: dict[str, TensorRecord] = {}
        self._extras: dict[str, ExtraRecord] = {}
        self._writer = SafetensorsWriter(path, {})

    def add_extra(self, name: str, extra: RawTensor) -> None:
        """Stores a tensor as it is; extras come before the compressed tensors."""
        self._writer.add(EXTRA_PREFIX + name, extra.dtype, extra.shape, [extra.data])
        checksum = self._writer.checksums[EXTRA_PREFIX + name]
        self._extras[name] = ExtraRecord(dtype=extra.dtype, shape=list(extra.shape), crc32=checksum)

    def add_tensor(self, name: str, packed: PackedTensor) -> None:
        """Stores a compressed tensor. Raises: ValueError where it is stored already."""
        if name in self._tensors:
            raise ValueError(f"{name}: written twice")
        self._writer.extend(BLOCKS, packed.data)
        self._tensors[name] = packed.record

    def set_header(self, header: ArtifactHeader) -> None:
        """Replaces what the artifact says of itself, known only once all tensors are read."""
        self._header = header

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._writer.extend(BLOCKS, b"")
            table = TensorTable(tensors=self._tensors, training=self._header.training).model_dump(
                exclude_defaults=True
            )
            stored = zstd_compress(_json(table), _TABLE_LEVEL)
            self._writer.add(TABLE, "U8", (len(stored),), [stored])
            described = self._header.model_dump(exclude={"tensors", "extras", "training"})
            document = ArtifactDocument(
                version=max([_version(self._header), *(record.version for record in self._tensors.values())]),
                **described,
                extras=self._extras,
                table=TableRecord(size=len(stored), crc32=crc32(stored)),
            )
            identity = {"format": document.format, "version": document.version}
            text = _json(identity | document.model_dump(exclude_defaults=True))
            self._writer.metadata = {METADATA_KEY: text.decode(), CHECKSUM_KEY: crc32(text)}
        self._writer.__exit__(kind, error, trace)


def _version(header: ArtifactHeader) -> Literal[2, 3]:
    """Returns the least version of the format that has all that a header says."""
    return 2 if header.training is None else 3


def _json(document: dict[str, Any]) -> bytes:
    """Returns a document's JSON: defaults left out, tensors in the order they were added."""
    return json.dumps(document, separators=(",", ":")).encode()
