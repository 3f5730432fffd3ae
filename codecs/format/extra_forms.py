"""The forms in which an artifact stores extras, the task's own tensors.

Adding one is its class, its line in `EXTRA_FORMS` and its row in FORMAT.md.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

from flexswitch.codecs.byte_planes import decode_planes, encode_planes
from flexswitch.codecs.errors import DecodeError, unknown_name
from flexswitch.codecs.format.records import ExtraRecord, FormRecord, RawTensor, crc32
from flexswitch.codecs.format.safetensors_file import DTYPE_BYTES


class ExtraForm(Protocol):
    """A frozen dataclass whose fields are its settings. The bytes of a released name never change."""

    name: ClassVar[str]

    def encode(self, tensor: RawTensor) -> bytes:
        """Returns the stored bytes."""

    def decode(self, data: bytes, dtype: str, shape: tuple[int, ...]) -> bytes:
        """Returns the tensor's bytes. Raises: DecodeError."""


@dataclass(frozen=True)
class Plain:
    """The tensor's bytes, unchanged."""

    name: ClassVar[str] = "plain"

    def encode(self, tensor: RawTensor) -> bytes:
        """Returns the tensor's bytes."""
        return tensor.data

    def decode(self, data: bytes, dtype: str, shape: tuple[int, ...]) -> bytes:
        """Returns the data. Raises: DecodeError if its length is not that of the tensor."""
        expected = math.prod(shape) * DTYPE_BYTES[dtype]
        if len(data) != expected:
            raise DecodeError(f"{len(data)} bytes, expected {expected}")
        return data


@dataclass(frozen=True)
class BytePlanes:
    """The bytes of equal significance together, compressed if that makes them smaller."""

    name: ClassVar[str] = "byte-planes"

    def encode(self, tensor: RawTensor) -> bytes:
        """Returns the byte planes."""
        return encode_planes(tensor.data, DTYPE_BYTES[tensor.dtype])

    def decode(self, data: bytes, dtype: str, shape: tuple[int, ...]) -> bytes:
        """Returns the tensor's bytes. Raises: DecodeError."""
        return decode_planes(data, DTYPE_BYTES[dtype], math.prod(shape))


EXTRA_FORMS: dict[str, type[ExtraForm]] = {form.name: form for form in (Plain, BytePlanes)}


_GROWTH, _FREE_BYTES = 1000, 1 << 26


def most_extra_bytes(stored_bytes: int) -> int:
    """Returns the size of the largest tensor that so many stored bytes may stand for."""
    return _FREE_BYTES + _GROWTH * stored_bytes


@dataclass(frozen=True)
class PackedExtra:
    """An extra as it is stored in an artifact: its record and its bytes."""

    record: ExtraRecord
    data: bytes


def packed_extra(tensor: RawTensor) -> PackedExtra:
    """Returns a tensor in the smallest of the exact forms that readers accept."""
    forms: list[ExtraForm] = [Plain(), BytePlanes()]
    stored = [(form, form.encode(tensor)) for form in forms]
    readable = [each for each in stored if len(tensor.data) <= most_extra_bytes(len(each[1]))]
    form, data = min(readable, key=lambda each: len(each[1]))
    record = ExtraRecord(
        dtype=tensor.dtype,
        shape=list(tensor.shape),
        form=FormRecord(name=form.name, settings=dict(vars(form))),
        size=len(data),
        crc32=crc32(data),
    )
    return PackedExtra(record, data)


def unpacked_extra(record: ExtraRecord, data: bytes) -> RawTensor:
    """Returns the tensor that is stored as `data`.

    Raises: DecodeError on an unknown form or on data that the form cannot have written.
    """
    name, settings, shape = record.form.name, record.form.settings, tuple(record.shape)
    if name not in EXTRA_FORMS:
        raise DecodeError(unknown_name("form", name, EXTRA_FORMS) + "; a newer flexswitch may know it")
    try:
        form = EXTRA_FORMS[name](**settings)
    except (TypeError, ValueError) as error:
        raise DecodeError(f"the form {name} does not accept the settings {settings}: {error}") from error
    return RawTensor(record.dtype, shape, form.decode(data, record.dtype, shape))
