"""Writes an artifact, the `.fsw` file of one compressed task vector; container.py reads it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.artifact_table import most_table_bytes
from flexswitch.codecs.format.exact_forms import PackedExact
from flexswitch.codecs.format.extra_forms import PackedExtra
from flexswitch.codecs.format.records import (
    CHECKSUM_KEY,
    DATA,
    METADATA_KEY,
    TABLE,
    ArtifactDocument,
    ArtifactHeader,
    BlockRecord,
    ExactRecord,
    ExtraRecord,
    PartRecord,
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
    """A compressed tensor as it is stored in an artifact: its record and the bytes of all its blocks."""

    record: TensorRecord
    data: bytes


def packed_tensor(
    sparse: SparseTensor,
    form: StoredForm,
    scale: float,
    dtype: str,
    zero: int | None = None,
    shape: tuple[int, ...] | None = None,
    weights: Sequence[float] | None = None,
) -> PackedTensor:
    """Returns a tensor's record and bytes.

    dtype: of the fine-tuned checkpoint, by its safetensors name. zero: the zero point, if there is one.
    shape: of the matrix whose two factors are given, one above the other; None for the tensor itself.
    weights: of the factors' columns, float32; None for 1.
    """
    record = TensorRecord(
        shape=list(sparse.shape if shape is None else shape),
        dtype=dtype,
        bits=sparse.bits,  # type: ignore[arg-type]  # pydantic checks it
        scale=float32_scale(scale),
        zero=zero,
        rank=None if shape is None else sparse.shape[1],
        weights=None if weights is None else [float32_scale(weight) for weight in weights],
        rows=_block_record(form.rows) if form.rows else None,
        blocks=[_block_record(block) for block in form.blocks],
    )
    data = [block.data for block in ([form.rows] if form.rows else []) + list(form.blocks)]
    return PackedTensor(record, b"".join(data))


def packed_sum(parts: Sequence[PackedTensor], base_factor: float = 0.0) -> PackedTensor:
    """Returns the tensor that is the sum of one or more parts, all of one shape and dtype.

    base_factor: times which the base's tensor is added too, a float32.
    """
    if len(parts) == 1 and not base_factor:
        return parts[0]
    first, *more = (_fields(part.record) for part in parts)
    further = [PartRecord(**fields) for fields in more]
    record = TensorRecord(**first, more=further, base_factor=base_factor)
    return PackedTensor(record, b"".join(part.data for part in parts))


def _fields(record: TensorRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in PartRecord.model_fields}


def _block_record(block: StoredBlock) -> BlockRecord:
    return BlockRecord(
        codec=block.codec.name,
        settings=dict(vars(block.codec)),
        kept=block.kept,
        size=len(block.data),
        crc32=crc32(block.data),
    )


class ArtifactWriter:
    """Writes extras, then tensors, then the header; only the records are held in memory."""

    def __init__(self, path: Path) -> None:
        self._tensors: dict[str, TensorRecord] = {}
        self._exact: dict[str, ExactRecord] = {}
        self._extras: dict[str, ExtraRecord] = {}
        self._writer = SafetensorsWriter(path, {})
        self._writer.extend(DATA, b"")
        self._is_finished = False
        self._data_bytes = 0

    def add_extra(self, name: str, extra: PackedExtra) -> None:
        """Stores an extra. Raises: ValueError if it is stored already, or after a compressed tensor."""
        if name in self._extras or self._tensors or self._exact:
            raise ValueError(f"{name}: written twice, or behind a compressed tensor")
        self._writer.extend(DATA, extra.data)
        self._data_bytes += len(extra.data)
        self._extras[name] = extra.record

    def add_tensor(self, name: str, packed: PackedTensor | PackedExact) -> None:
        """Stores a tensor. Raises: ValueError if it is stored already, or an exact one is."""
        if name in self._tensors or name in self._exact:
            raise ValueError(f"{name}: written twice")
        if self._exact and isinstance(packed, PackedTensor):
            raise ValueError(f"{name}: written behind a tensor that is stored exactly")
        self._writer.extend(DATA, packed.data)
        self._data_bytes += len(packed.data)
        if isinstance(packed, PackedTensor):
            self._tensors[name] = packed.record
        else:
            self._exact[name] = packed.record

    def finish(self, header: ArtifactHeader) -> None:
        """Writes the table and the header, without which the file is no artifact.

        The header's own `extras`, `tensors` and `exact` are ignored: those that were added are written.
        """
        contents = TensorTable(
            extras=self._extras,
            tensors=self._tensors,
            exact=self._exact,
            training=header.training,
            error=header.error,
            budget=header.budget,
        )
        plain = _json(contents.model_dump(exclude_defaults=True))
        table = zstd_compress(plain, _TABLE_LEVEL)
        if len(plain) > (most := most_table_bytes(self._data_bytes + len(table))):
            raise InputError(
                f"the table of {len(self._tensors):,} tensors takes {len(plain):,} bytes, and readers accept "
                f"{most:,}; leave tensors that did not change out with --exclude"
            )
        self._writer.add(TABLE, "U8", (len(table),), [table])
        document = ArtifactDocument(
            **header.model_dump(exclude=set(TensorTable.model_fields)),
            table=TableRecord(size=len(table), crc32=crc32(table)),
        )
        identity = {"format": document.format, "version": document.version}
        text = _json(identity | document.model_dump(exclude_defaults=True))
        self._writer.metadata = {METADATA_KEY: text.decode(), CHECKSUM_KEY: crc32(text)}
        self._is_finished = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)
        if kind is None and not self._is_finished:
            raise ValueError("an artifact needs a header: call finish(header)")


def _json(document: dict[str, Any]) -> bytes:
    """Returns a document as compact JSON, its fields in the given order."""
    return json.dumps(document, separators=(",", ":")).encode()
