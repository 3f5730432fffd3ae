"""The forms in which an artifact stores the blocks of a tensor exactly, given the base's numbers.

Adding one is its class, its line in `EXACT_FORMS` and its row in FORMAT.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from flexswitch.codecs.blocks import as_matrix
from flexswitch.codecs.errors import DecodeError, unknown_name
from flexswitch.codecs.format.records import ExactBlock, ExactRecord, FormRecord, crc32
from flexswitch.codecs.residual import NUMBER_KINDS, NumberKind, Residual
from flexswitch.codecs.residual_model import Numbers


class ExactForm(Protocol):
    """A frozen dataclass whose fields are its settings. The bytes of a released name never change."""

    name: ClassVar[str]

    def decode(self, data: bytes, base: Numbers, columns: int, kind: NumberKind) -> Numbers:
        """Returns the fine-tuned bit patterns of a block, (entry,). Raises: DecodeError."""


@dataclass(frozen=True)
class Same:
    """No bytes: the numbers are the base's."""

    name: ClassVar[str] = "same"

    def decode(self, data: bytes, base: Numbers, columns: int, kind: NumberKind) -> Numbers:
        """Returns the base's numbers. Raises: DecodeError if there are bytes."""
        if data:
            raise DecodeError(f"{len(data)} bytes, expected none")
        return base


@dataclass(frozen=True)
class Plain:
    """The bytes of the numbers, unchanged."""

    name: ClassVar[str] = "plain"

    def decode(self, data: bytes, base: Numbers, columns: int, kind: NumberKind) -> Numbers:
        """Returns the numbers. Raises: DecodeError if they are not as many as the base's."""
        if len(data) != base.nbytes:
            raise DecodeError(f"{len(data)} bytes, expected {base.nbytes}")
        return np.frombuffer(data, kind.dtype)


EXACT_FORMS: dict[str, type[ExactForm]] = {form.name: form for form in (Same, Plain, Residual)}


@dataclass(frozen=True)
class PackedExact:
    """A tensor as it is stored exactly: its record and the bytes of all its blocks."""

    record: ExactRecord
    data: bytes


def block_shapes(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Returns (rows, columns) of each block of a tensor."""
    return as_matrix(shape).shapes()


def packed_exact(shape: tuple[int, ...], dtype: str, blocks: Iterable[tuple[bytes, bytes]]) -> PackedExact:
    """Returns a tensor as it is stored exactly.

    dtype: by its safetensors name. blocks: for each block the bytes of the base's and of the fine-tuned
    numbers.
    """
    kind, records, stored = NUMBER_KINDS[dtype], [], []
    for (base, found), (_, columns) in zip(blocks, block_shapes(shape), strict=True):
        form, data = _smallest(base, found, columns, kind)
        named = FormRecord(name=form.name, settings=dict(vars(form)))
        records.append(ExactBlock(form=named, size=len(data), crc32=crc32(data), restored=crc32(found)))
        stored.append(data)
    record = ExactRecord(shape=list(shape), dtype=dtype, blocks=records)
    return PackedExact(record, b"".join(stored))


def unpacked_block(record: ExactRecord, index: int, data: bytes, base: bytes) -> bytes:
    """Returns the bytes of a block's fine-tuned numbers. base: those of the base's, in the same dtype.

    Raises: DecodeError on an unknown form, on data that the form cannot have written, or another base.
    """
    block, kind = record.blocks[index], NUMBER_KINDS[record.dtype]
    form = exact_form(block.form)
    columns = block_shapes(tuple(record.shape))[index][1]
    found = form.decode(data, np.frombuffer(base, kind.dtype), columns, kind).tobytes()
    if crc32(found) != block.restored:
        raise DecodeError("does not give the fine-tuned numbers: the base has other weights there")
    return found


def exact_form(record: FormRecord) -> ExactForm:
    """Returns the form of a block by its record. Raises: DecodeError if it is not known."""
    if record.name not in EXACT_FORMS:
        raise DecodeError(unknown_name("form", record.name, EXACT_FORMS) + "; a newer flexswitch may know it")
    try:
        return EXACT_FORMS[record.name](**record.settings)
    except (TypeError, ValueError) as error:
        raise DecodeError(
            f"the form {record.name} does not accept the settings {record.settings}: {error}"
        ) from error


def _smallest(base: bytes, found: bytes, columns: int, kind: NumberKind) -> tuple[ExactForm, bytes]:
    if base == found:
        return Same(), b""
    numbers = np.frombuffer(base, kind.dtype), np.frombuffer(found, kind.dtype)
    form, data = Residual.encoded(*numbers, columns, kind)
    return (form, data) if len(data) < len(found) else (Plain(), found)
