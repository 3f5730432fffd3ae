"""The `.fsw` file: one compressed task vector in a safetensors container. FORMAT.md specifies it."""

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flexswitch.codecs.codec import Codec
from flexswitch.codecs.errors import ArtifactError, DecodeError, InputError
from flexswitch.codecs.registry import stored_codec
from flexswitch.codecs.safetensors_file import DTYPE_BYTES, Header, SafetensorsWriter, read_header, read_range
from flexswitch.codecs.sparse import SparseLayout, SparseTensor

METADATA_KEY = "flexswitch"
CHECKSUM_KEY = "flexswitch_crc32"
EXTRA_PREFIX = "extra/"
TASK_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Crc32 = Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TaskName = Annotated[str, Field(pattern=rf"^{TASK_NAME}$")]


class Strict(BaseModel):
    """A record whose fields are all known and of their stated type."""

    # Some models' config.json holds Infinity, which pydantic would write as null.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, ser_json_inf_nan="constants")


Document = TypeVar("Document", bound=Strict)


class BaseIdentity(Strict):
    """Which base a task vector belongs to.

    fingerprint covers every byte of the base, sample a few slices of each tensor; id is its hub id.
    """

    fingerprint: Sha256
    sample: Sha256
    id: str | None = None


class ModelRecord(Strict):
    """How the fine-tuned model differs from its base beside the weights.

    A base name with base_prefix removed and prefix put in front is the fine-tuned name; config holds
    the entries of the fine-tuned config.json that differ from the base's.
    """

    adapter: str | None = None
    base_prefix: str = ""
    prefix: str = ""
    config: dict[str, Any] = {}

    def finetuned_name(self, base_name: str) -> str:
        """Returns the name that a tensor of the base has in the fine-tuned checkpoint."""
        return self.prefix + base_name.removeprefix(self.base_prefix)


class MethodRecord(Strict):
    """The compression method with every parameter."""

    name: str
    settings: dict[str, str | int | float | bool] = {}
    seed: int | None = None


class CodecRecord(Strict):
    """A codec's name and settings."""

    name: str
    settings: dict[str, int] = {}


class TensorRecord(Strict):
    """One compressed tensor; crc32 has one entry a payload."""

    shape: Annotated[list[Count], Field(max_length=64)]
    dtype: str = "F32"
    codec: CodecRecord
    kept: Count
    bits: Literal[1, 2, 4, 8, 16, 32] = 1
    scale: Annotated[float, Field(ge=0, le=3.4028235e38, allow_inf_nan=False)]  # a float32
    crc32: dict[str, Crc32]

    @property
    def layout(self) -> SparseLayout:
        """Shape, kept count and bits."""
        return SparseLayout(tuple(self.shape), self.kept, self.bits)


class ExtraRecord(Strict):
    """One tensor that is stored as it is."""

    dtype: str
    shape: Annotated[list[Count], Field(max_length=64)]
    crc32: Crc32


class ArtifactHeader(Strict):
    """The JSON document of an artifact. parameters counts all entries of the base's units."""

    format: Literal["flexswitch-artifact"] = "flexswitch-artifact"
    version: Literal[1] = 1
    name: TaskName
    base: BaseIdentity
    model: ModelRecord = ModelRecord()
    method: MethodRecord
    parameters: Count
    tensors: dict[str, TensorRecord] = {}
    extras: dict[str, ExtraRecord] = {}


@dataclass(frozen=True)
class RawTensor:
    """A tensor stored as it is: dtype by its safetensors name, little-endian row-major bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def crc32(data: bytes | bytearray | memoryview) -> str:
    """Returns the CRC-32 of ISO-HDLC (zlib's) as 8 hexadecimal digits."""
    return f"{zlib.crc32(data):08x}"


def float32_scale(scale: float) -> float:
    """Returns the shortest decimal that reads back as the same float32."""
    return float(str(np.float32(scale)))


class ArtifactWriter:
    """Writes an artifact tensor by tensor; nothing but the header is held in memory."""

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

    def add_tensor(self, name: str, sparse: SparseTensor, scale: float, dtype: str, codec: Codec) -> None:
        """Encodes and stores a compressed tensor; dtype is the fine-tuned checkpoint's."""
        parts = codec.encode(sparse)
        for part, data in parts.items():
            self._writer.add(f"{name}/{part}", "U8", (len(data),), [data])
        self._tensors[name] = TensorRecord(
            shape=list(sparse.shape),
            dtype=dtype,
            codec=CodecRecord(name=codec.name, settings=_settings(codec)),
            kept=len(sparse.levels),
            bits=sparse.bits,  # type: ignore[arg-type]  # pydantic checks it
            scale=float32_scale(scale),
            crc32={part: self._writer.checksums[f"{name}/{part}"] for part in parts},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            header = self._header.model_copy(update={"tensors": self._tensors, "extras": self._extras})
            text = json.dumps(_document(header), separators=(",", ":"))
            self._writer.metadata = {METADATA_KEY: text, CHECKSUM_KEY: crc32(text.encode())}
        self._writer.__exit__(kind, error, trace)


def _document(header: ArtifactHeader) -> dict[str, Any]:
    """Returns the header's document: defaults left out, tensors in the order they were added."""
    identity = {"format": header.format, "version": header.version}
    return identity | header.model_dump(exclude_defaults=True)


def _settings(codec: Codec) -> dict[str, int]:
    return dict(vars(codec))


class Artifact:
    """An open `.fsw` file: its header, and any one tensor on demand."""

    def __init__(self, path: Path, header: ArtifactHeader, stored: Header) -> None:
        self.path = path
        self.header = header
        self._stored = stored

    def sparse(self, name: str) -> SparseTensor:
        """Returns one compressed tensor. Raises: DecodeError naming the file and the tensor."""
        record = self.header.tensors[name]
        parts = {part: self._payload(name, f"{name}/{part}", crc) for part, crc in record.crc32.items()}
        try:
            return stored_codec(record.codec.name, record.codec.settings).decode(parts, record.layout)
        except DecodeError as error:
            raise DecodeError(f"{self.path}: tensor '{name}': {error}") from error

    def extra(self, name: str) -> RawTensor:
        """Returns one tensor that is stored as it is. Raises: DecodeError."""
        record = self.header.extras[name]
        return RawTensor(
            record.dtype, tuple(record.shape), self._payload(name, EXTRA_PREFIX + name, record.crc32)
        )

    def payload_bytes(self, name: str) -> int:
        """Returns the stored bytes of one compressed tensor."""
        parts = self.header.tensors[name].crc32
        return sum(self._stored.tensors[f"{name}/{part}"].size for part in parts)

    def extra_bytes(self) -> int:
        """Returns the stored bytes of all extras."""
        return sum(self._stored.tensors[EXTRA_PREFIX + name].size for name in self.header.extras)

    def _payload(self, name: str, stored_name: str, expected: str) -> bytes:
        stored = self._stored.tensors[stored_name]
        data = read_range(self.path, stored.offset, stored.size, ArtifactError)
        if crc32(data) != expected:
            raise DecodeError(
                f"{self.path}: tensor '{name}' is damaged: checksum {crc32(data)} of its payload "
                f"'{stored_name}', expected {expected}; restore the file from a copy, or compress it again"
            )
        return bytes(data)


def open_artifact(path: Path) -> Artifact:
    """Opens an artifact and checks its header; payloads are checked as they are read.

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
    header = parse_document(ArtifactHeader, path, text, stored.metadata)
    _check_consistent(path, header, stored)
    return Artifact(path, header, stored)


def parse_document(kind: type[Document], path: Path, text: str, metadata: Mapping[str, str]) -> Document:
    """Returns a file's JSON document. Raises: ArtifactError on a wrong checksum, version or field."""
    if metadata.get(CHECKSUM_KEY) != crc32(text.encode()):
        raise ArtifactError(f"{path}: its header is damaged: the checksum in '{CHECKSUM_KEY}' does not fit")
    return parse_strict(kind, path, text)


def parse_strict(kind: type[Document], path: Path, text: str) -> Document:
    """Returns a JSON document of that kind.

    Raises: InputError where it is another kind; ArtifactError naming the first wrong field.
    """
    try:
        document = json.loads(text)
        version, found = document.get("version"), document.get("format")
    except (ValueError, AttributeError, RecursionError) as reason:
        raise ArtifactError(f"{path}: its JSON document does not parse ({reason})") from reason
    expected = kind.model_fields["format"].default
    if isinstance(found, str) and found != expected:
        raise InputError(f"{path}: is a {found}, expected a {expected}")
    if isinstance(version, int) and version > 1:
        raise ArtifactError(f"{path}: format version {version}, this flexswitch reads 1; install a newer one")
    try:
        return kind.model_validate_json(text)
    except ValidationError as reason:
        first = reason.errors()[0]
        field = ".".join(str(step) for step in first["loc"])
        raise ArtifactError(f"{path}: its field '{field}' is wrong: {first['msg']}") from reason


def _check_consistent(path: Path, header: ArtifactHeader, stored: Header) -> None:
    named = {EXTRA_PREFIX + name for name in header.extras}
    for name, extra in header.extras.items():
        found = stored.tensors.get(EXTRA_PREFIX + name)
        if found is not None and (found.dtype, list(found.shape)) != (extra.dtype, extra.shape):
            raise ArtifactError(
                f"{path}: extra '{name}' is {found.dtype} {list(found.shape)} in one of its two headers and "
                f"{extra.dtype} {extra.shape} in the other; it is damaged"
            )
    for name, record in header.tensors.items():
        named |= {f"{name}/{part}" for part in record.crc32}
        entries = math.prod(record.shape)
        if record.kept > entries or record.dtype not in DTYPE_BYTES:
            raise ArtifactError(
                f"{path}: tensor '{name}' of shape {record.shape} and dtype {record.dtype} "
                f"keeps {record.kept} entries; its header is damaged"
            )
    if named != set(stored.tensors):
        odd = sorted(named ^ set(stored.tensors))[0]
        raise ArtifactError(f"{path}: payload '{odd}' stands in only one of its two headers; it is damaged")
