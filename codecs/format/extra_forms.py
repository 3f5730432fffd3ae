"""The forms in which an artifact stores extras, the task's own tensors: exactly, or rounded.

Adding one is its class, its line in `EXTRA_FORMS` and its row in FORMAT.md.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from flexswitch.codecs.byte_planes import decode_planes, encode_planes
from flexswitch.codecs.errors import DecodeError, unknown_name
from flexswitch.codecs.format.records import ExtraRecord, FormRecord, RawTensor, crc32
from flexswitch.codecs.format.safetensors_file import DTYPE_BYTES
from flexswitch.codecs.quantised_rows import WIDTHS, decode_rows, encode_rows
from flexswitch.codecs.sparse import FloatArray

_NUMPY_DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}


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


@dataclass(frozen=True)
class Float16:
    """Floating numbers rounded to float16, in byte planes."""

    name: ClassVar[str] = "float16"

    def encode(self, tensor: RawTensor) -> bytes:
        """Returns the byte planes of the rounded numbers."""
        with np.errstate(over="ignore"):
            halves = float_values(tensor.data, tensor.dtype).astype("<f2")
        return encode_planes(halves.tobytes(), halves.itemsize)

    def decode(self, data: bytes, dtype: str, shape: tuple[int, ...]) -> bytes:
        """Returns the tensor's bytes. Raises: DecodeError."""
        halves = np.frombuffer(decode_planes(data, 2, math.prod(shape)), "<f2")
        return float_bytes(halves.astype(np.float32), dtype)


@dataclass(frozen=True)
class QuantisedRows:
    """Floating numbers quantised row by row. bits: of a level, 2 to 8."""

    name: ClassVar[str] = "quantised-rows"

    bits: int = 8

    def __post_init__(self) -> None:
        if self.bits not in WIDTHS:
            raise ValueError(f"bits {self.bits}, expected {WIDTHS[0]} to {WIDTHS[-1]}")

    def encode(self, tensor: RawTensor) -> bytes:
        """Returns the scales and levels. The numbers are finite."""
        values = float_values(tensor.data, tensor.dtype)
        return encode_rows(values.reshape(tensor.shape[0], -1), self.bits)

    def decode(self, data: bytes, dtype: str, shape: tuple[int, ...]) -> bytes:
        """Returns the tensor's bytes. Raises: DecodeError."""
        if len(shape) < 2 or not math.prod(shape):
            raise DecodeError(f"quantised rows of the shape {list(shape)}, expected a matrix")
        return float_bytes(decode_rows(data, shape[0], math.prod(shape[1:]), self.bits), dtype)


EXTRA_FORMS: dict[str, type[ExtraForm]] = {
    form.name: form for form in (Plain, BytePlanes, Float16, QuantisedRows)
}
LOSSY_DTYPES = ("F32", "BF16", "F16", "F64")


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
    stored = [_packed(tensor, form) for form in (Plain(), BytePlanes())]
    readable = [each for each in stored if len(tensor.data) <= most_extra_bytes(len(each.data))]
    return min(readable, key=lambda each: len(each.data))


def rounded_extra(tensor: RawTensor, form: Float16 | QuantisedRows) -> PackedExtra:
    """Returns a tensor in a form that rounds it, if that is smaller than the exact ones and suits the tensor.

    It suits floating tensors of two dimensions or more, all of whose numbers stay finite.
    """
    exact = packed_extra(tensor)
    if tensor.dtype not in LOSSY_DTYPES or len(tensor.shape) < 2 or not tensor.data:
        return exact
    if not np.isfinite(float_values(tensor.data, tensor.dtype)).all():
        return exact
    packed = _packed(tensor, form)
    kept = float_values(unpacked_extra(packed.record, packed.data).data, tensor.dtype)
    readable = len(tensor.data) <= most_extra_bytes(len(packed.data))
    return packed if readable and len(packed.data) < len(exact.data) and np.isfinite(kept).all() else exact


def _packed(tensor: RawTensor, form: ExtraForm) -> PackedExtra:
    data = form.encode(tensor)
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


def float_values(data: bytes, dtype: str) -> FloatArray:
    """Returns floating numbers in float32, flat. dtype: one of `LOSSY_DTYPES`."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(over="ignore"):
        return np.frombuffer(data, _NUMPY_DTYPES[dtype]).astype(np.float32)


def float_bytes(values: FloatArray, dtype: str) -> bytes:
    """Returns float32 values rounded to a dtype, to nearest even. Raises: DecodeError on other dtypes."""
    if dtype not in LOSSY_DTYPES:
        raise DecodeError(f"rounded numbers of the dtype {dtype}, expected one of {', '.join(LOSSY_DTYPES)}")
    if dtype == "BF16":
        patterns = np.ascontiguousarray(values).view(np.uint32)
        odd = (patterns >> np.uint32(16)) & np.uint32(1)
        return ((patterns + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype("<u2").tobytes()
    with np.errstate(over="ignore"):
        return values.astype(_NUMPY_DTYPES[dtype]).tobytes()
