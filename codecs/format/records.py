"""The records of which flexswitch's files consist: strict schemas of their JSON documents.

FORMAT.md specifies them. Every field is checked for presence, type and range before anything is believed.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flexswitch.codecs.errors import ArtifactError, InputError
from flexswitch.codecs.sparse import SparseLayout

METADATA_KEY = "flexswitch"
CHECKSUM_KEY = "flexswitch_crc32"
EXTRA_PREFIX = "extra/"
BLOCKS, TABLE = "blocks", "table"  # the tensors of an artifact beside its extras
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
    quick_fingerprint: Sha256
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


class BlockRecord(Strict):
    """One block as it is stored: by which codec, how many entries it keeps, in how many bytes."""

    codec: str
    settings: dict[str, int] = {}
    kept: Count
    size: Count
    crc32: Crc32


class TensorRecord(Strict):
    """One compressed tensor. rows, where there are any, marks the rows that are stored, a bit each.

    zero is the level that stands for 0, or would, in a tensor with a zero point; no kept entry has it.
    """

    shape: Annotated[list[Count], Field(max_length=64)]
    dtype: str = "F32"
    bits: Literal[1, 2, 3, 4, 5, 6, 7, 8, 16, 32] = 1
    scale: Annotated[float, Field(ge=0, le=3.4028235e38, allow_inf_nan=False)]  # a float32
    zero: Annotated[int, Field(gt=-(1 << 32), lt=1 << 32)] | None = None
    rows: BlockRecord | None = None
    blocks: list[BlockRecord]

    @property
    def kept(self) -> int:
        """Number of kept entries."""
        return sum(block.kept for block in self.blocks)

    @property
    def layout(self) -> SparseLayout:
        """Shape, kept count and bits."""
        return SparseLayout(tuple(self.shape), self.kept, self.bits)

    @property
    def version(self) -> Literal[2, 3]:
        """The first version of the artifact that can hold it, as far as version 2."""
        return 3 if self.zero is not None or self.bits in (3, 5, 6, 7) else 2

    @property
    def stored(self) -> list[BlockRecord]:
        """The row flags, where there are any, then the blocks, as they stand in the file."""
        return [*([self.rows] if self.rows else []), *self.blocks]

    @property
    def size(self) -> int:
        """Stored bytes."""
        return sum(block.size for block in self.stored)


class ExtraRecord(Strict):
    """One tensor that is stored as it is."""

    dtype: str
    shape: Annotated[list[Count], Field(max_length=64)]
    crc32: Crc32


class TableRecord(Strict):
    """The bytes of the table of tensors as they are stored, and their checksum."""

    size: Count
    crc32: Crc32


class ArtifactDocument(Strict):
    """The JSON document in an artifact's metadata. parameters counts all entries of the base's units."""

    format: Literal["flexswitch-artifact"] = "flexswitch-artifact"
    version: Literal[2, 3] = 2
    name: TaskName
    base: BaseIdentity
    model: ModelRecord = ModelRecord()
    method: MethodRecord
    parameters: Count
    extras: dict[str, ExtraRecord] = {}
    table: TableRecord


class QualityRecord(Strict):
    """A compressed model beside the fine-tuned one, on the exemplars learned from and on those held out.

    divergence: nats a sample or token, of features the mean squared difference. agreement: the share of
    equal answers.
    """

    divergence: float
    agreement: float
    held_out_divergence: float | None = None
    held_out_agreement: float | None = None


class TrainingRecord(Strict):
    """What a learned compression started from and came to. Numbers have four significant digits.

    before: at the start; after: of what is stored. curve: (steps done, mean loss,
    mean estimated bits a parameter) of successive stretches of the steps.
    """

    exemplars: Count
    exemplars_sha256: Sha256
    held_out: Count
    before: QualityRecord
    after: QualityRecord
    curve: list[tuple[Count, float, float]] = []


class TensorTable(Strict):
    """The JSON document of the table: base name → record, in the order of their bytes in the file."""

    tensors: dict[str, TensorRecord]
    training: TrainingRecord | None = None


class ArtifactHeader(Strict):
    """What an artifact says of itself and of each tensor."""

    name: TaskName
    base: BaseIdentity
    model: ModelRecord = ModelRecord()
    method: MethodRecord
    parameters: Count
    tensors: dict[str, TensorRecord] = {}
    extras: dict[str, ExtraRecord] = {}
    training: TrainingRecord | None = None


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


def parse_document(kind: type[Document], path: Path, text: str, metadata: Mapping[str, str]) -> Document:
    """Returns a file's JSON document. Raises: ArtifactError on a wrong checksum, version or field."""
    if metadata.get(CHECKSUM_KEY) != crc32(text.encode()):
        raise ArtifactError(f"{path}: its header is damaged: the checksum in '{CHECKSUM_KEY}' does not fit")
    return parse_strict(kind, path, text)


def parse_strict(kind: type[Document], path: Path, text: str) -> Document:
    """Returns a JSON document of that kind.

    Raises: InputError where it is another kind; ArtifactError naming the first wrong field.
    """
    _check_kind(kind, path, _parsed(path, text))
    return validated(kind, path, text)


def document_version(path: Path, text: str) -> object:
    """Returns what a JSON document names as its version. Raises: ArtifactError where it does not parse."""
    return _parsed(path, text).get("version")


def _parsed(path: Path, text: str) -> dict[str, object]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise ArtifactError(f"{path}: its JSON document does not parse ({reason})") from reason
    if not isinstance(document, dict):
        raise ArtifactError(f"{path}: its JSON document is a {type(document).__name__}, expected an object")
    return document


def _check_kind(kind: type[Document], path: Path, document: dict[str, object]) -> None:
    expected = kind.model_fields["format"].default
    newest = max(get_args(kind.model_fields["version"].annotation))
    version, found = document.get("version"), document.get("format")
    if isinstance(found, str) and found != expected:
        raise InputError(f"{path}: is a {found}, expected a {expected}")
    if "version" in document and type(version) is not int:
        raise ArtifactError(f"{path}: its field 'version' is {version!r}, expected a whole number")
    if isinstance(version, int) and version > newest:
        raise ArtifactError(
            f"{path}: format version {version}, this flexswitch reads {newest}; install a newer one"
        )


def validated(kind: type[Document], path: Path, text: str) -> Document:
    """Returns a JSON document of that kind. Raises: ArtifactError naming the first wrong field."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as reason:
        first = reason.errors()[0]
        field = ".".join(str(step) for step in first["loc"])
        raise ArtifactError(f"{path}: its field '{field}' is wrong: {first['msg']}") from reason
