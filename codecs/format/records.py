"""Strict schemas of the JSON documents in flexswitch's files.

FORMAT.md specifies them; documents.py reads them.
"""

import math
import zlib
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from flexswitch.codecs.format.fields import Blake3, Count, Crc32, HubId, Sha256, TaskName
from flexswitch.codecs.format.quality_records import BudgetRecord, ErrorRecord, TrainingRecord
from flexswitch.codecs.format.strict import Strict
from flexswitch.codecs.sparse import SparseLayout

METADATA_KEY = "flexswitch"
CHECKSUM_KEY = "flexswitch_crc32"
DATA, TABLE = "data", "table"  # the two safetensors tensors of an artifact
MOST_PARTS = 8  # of a tensor, whose values are added
_LARGEST = 3.4028235e38  # a float32


class BaseIdentity(Strict):
    """Identifies the base model of a task vector.

    fingerprint: covers every byte of the base. id: the base's id on the Hugging Face hub.
    """

    fingerprint: Blake3
    id: HubId | None = None


class ModelRecord(Strict):
    """How the fine-tuned model differs from its base, apart from the weights.

    base_prefix, prefix: removing the first from a base name and prepending the second gives the
    fine-tuned name. config: the entries of the fine-tuned config.json that differ from the base's.
    """

    adapter: str | None = None
    base_prefix: str = ""
    prefix: str = ""
    config: dict[str, Any] = {}

    def finetuned_name(self, base_name: str) -> str:
        """Returns the name that a tensor of the base has in the fine-tuned checkpoint."""
        return self.prefix + base_name.removeprefix(self.base_prefix)


class SharedRecord(Strict):
    """The shared vector of a zoo that a task's values are computed with, by the SHA-256 of its file.

    rule: whether the task's own values are added to the shared ones, or multiply them.
    """

    sha256: Sha256
    rule: Literal["sum", "product"]


class MethodRecord(Strict):
    """The method and all of its settings."""

    name: str
    settings: dict[str, str | int | float | bool] = {}


class BlockRecord(Strict):
    """One stored block: its codec, number of kept entries, size in bytes and checksum."""

    codec: str
    settings: dict[str, int] = {}
    kept: Count
    size: Count
    crc32: Crc32


class PartRecord(Strict):
    """One compressed tensor, or a part of it: the tensor is the sum of its parts.

    zero: the zero point, if the tensor has one: the level that stands for 0. No kept entry has it.
    rank: of a matrix that is stored as the product of two, which `stored_shape` has one above the other.
    weights: factors of the product's terms, one for each column of the two; None for 1. rows: one bit for
    each row of the matrix, 1 if the row is stored; None if all rows are stored.
    """

    shape: Annotated[list[Count], Field(max_length=64)]
    dtype: str = "F32"
    bits: Literal[0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 32] = 1
    scale: Annotated[float, Field(ge=0, le=_LARGEST, allow_inf_nan=False)]  # a float32
    zero: Annotated[int, Field(gt=-(1 << 32), lt=1 << 32)] | None = None
    rank: Annotated[int, Field(ge=1, lt=1 << 32)] | None = None
    weights: list[Annotated[float, Field(ge=-_LARGEST, le=_LARGEST, allow_inf_nan=False)]] | None = None
    rows: BlockRecord | None = None
    blocks: list[BlockRecord]

    @property
    def kept(self) -> int:
        """Number of kept entries."""
        return sum(block.kept for block in self.blocks)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of what is stored: of the tensor, or (rows + columns, rank)."""
        return tuple(self.shape) if self.rank is None else (sum(self.shape), self.rank)

    @property
    def layout(self) -> SparseLayout:
        """Shape, kept count and bits of what is stored."""
        return SparseLayout(self.stored_shape, self.kept, self.bits)

    @property
    def stored(self) -> list[BlockRecord]:
        """The row flags, if any, then the blocks, in file order."""
        return [*([self.rows] if self.rows else []), *self.blocks]

    @property
    def size(self) -> int:
        """Stored bytes."""
        return sum(block.size for block in self.stored)


class TensorRecord(PartRecord):
    """One compressed tensor: its first part, and further ones of the same shape and dtype.

    base_factor: the base's tensor times this, in float32, is added to the parts.
    """

    base_factor: Annotated[float, Field(ge=-_LARGEST, le=_LARGEST, allow_inf_nan=False)] = 0.0
    more: Annotated[list[PartRecord], Field(max_length=MOST_PARTS - 1)] = []

    @property
    def parts(self) -> list[PartRecord]:
        """All parts, in file order."""
        return [self, *self.more]

    @property
    def whole_size(self) -> int:
        """Stored bytes of all parts."""
        return sum(part.size for part in self.parts)


class FormRecord(Strict):
    """The form in which an extra is stored, by name and settings."""

    name: str
    settings: dict[str, int] = {}


class ExtraRecord(Strict):
    """One of the task's own tensors, such as a head."""

    dtype: str
    shape: Annotated[list[Count], Field(max_length=64)]
    form: FormRecord
    size: Count
    crc32: Crc32


class ExactBlock(Strict):
    """One block of a tensor that is stored exactly. restored: the CRC-32 of the fine-tuned numbers."""

    form: FormRecord
    size: Count
    crc32: Crc32
    restored: Crc32


class ExactRecord(Strict):
    """A tensor that is stored exactly, coded by the base's numbers, converted to its dtype."""

    shape: Annotated[list[Count], Field(max_length=64)]
    dtype: str
    blocks: list[ExactBlock]

    @property
    def entries(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Stored bytes."""
        return sum(block.size for block in self.blocks)


class TableRecord(Strict):
    """Size and checksum of the table as it is stored."""

    size: Count
    crc32: Crc32


class ArtifactDocument(Strict):
    """The JSON document in an artifact's metadata. parameters: number of entries of all compared tensors."""

    format: Literal["flexswitch-artifact"] = "flexswitch-artifact"
    version: Literal[1] = 1
    name: TaskName
    base: BaseIdentity
    model: ModelRecord = ModelRecord()
    method: MethodRecord
    shared: SharedRecord | None = None
    parameters: Count
    table: TableRecord


class TensorTable(Strict):
    """The JSON document of the table: name → record, in the order of their bytes in the file."""

    extras: dict[str, ExtraRecord] = {}
    tensors: dict[str, TensorRecord]
    exact: dict[str, ExactRecord] = {}
    training: TrainingRecord | None = None
    error: ErrorRecord | None = None
    budget: BudgetRecord | None = None


class ArtifactHeader(Strict):
    """The contents of an artifact's two JSON documents."""

    name: TaskName
    base: BaseIdentity
    model: ModelRecord = ModelRecord()
    method: MethodRecord
    shared: SharedRecord | None = None
    parameters: Count
    tensors: dict[str, TensorRecord] = {}
    exact: dict[str, ExactRecord] = {}
    extras: dict[str, ExtraRecord] = {}
    training: TrainingRecord | None = None
    error: ErrorRecord | None = None
    budget: BudgetRecord | None = None

    @property
    def kept(self) -> int:
        """Number of kept entries of all compressed tensors."""
        return sum(part.kept for record in self.tensors.values() for part in record.parts)


@dataclass(frozen=True)
class RawTensor:
    """A dense tensor: dtype by its safetensors name, little-endian row-major bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def crc32(data: bytes | bytearray | memoryview) -> str:
    """Returns the CRC-32 (zlib's) as 8 hexadecimal digits."""
    return f"{zlib.crc32(data):08x}"


def float32_scale(scale: float) -> float:
    """Returns the shortest decimal that reads back as the same float32."""
    return float(str(np.float32(scale)))
