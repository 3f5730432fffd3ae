"""Reads artifacts of format version 1: all records in the metadata, a whole tensor in one payload."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from flexswitch.codecs.errors import ArtifactError
from flexswitch.codecs.format.records import (
    EXTRA_PREFIX,
    ArtifactHeader,
    BaseIdentity,
    BlockRecord,
    Count,
    Crc32,
    ExtraRecord,
    MethodRecord,
    ModelRecord,
    Strict,
    TaskName,
    TensorRecord,
    parse_document,
)
from flexswitch.codecs.format.safetensors_file import Header


class _Codec(Strict):
    name: str
    settings: dict[str, int] = Field(default={})


class _Checksums(Strict):
    data: Crc32


class _Tensor(Strict):
    shape: Annotated[list[Count], Field(max_length=64)]
    dtype: str = "F32"
    codec: _Codec
    kept: Count
    bits: Literal[1, 2, 4, 8, 16, 32] = 1
    scale: Annotated[float, Field(ge=0, le=3.4028235e38, allow_inf_nan=False)]
    crc32: _Checksums


class _Document(Strict):
    format: Literal["flexswitch-artifact"] = "flexswitch-artifact"
    version: Literal[1] = 1
    name: TaskName
    base: BaseIdentity
    model: ModelRecord = ModelRecord()
    method: MethodRecord
    parameters: Count
    tensors: dict[str, _Tensor] = Field(default={})
    extras: dict[str, ExtraRecord] = Field(default={})


def read_version_1(path: Path, text: str, stored: Header) -> tuple[ArtifactHeader, dict[str, int]]:
    """Returns the header as version 2 has it, each tensor as one block, and where each tensor begins.

    Raises: ArtifactError on a wrong checksum or field, or where the two headers differ.
    """
    document = parse_document(_Document, path, text, stored.metadata)
    named = {EXTRA_PREFIX + name for name in document.extras}
    named |= {_payload(name) for name in document.tensors}
    if named != set(stored.tensors):
        odd = sorted(named ^ set(stored.tensors))[0]
        raise ArtifactError(f"{path}: payload '{odd}' stands in only one of its two headers; it is damaged")
    described = document.model_dump(exclude={"format", "version", "tensors"})
    tensors, offsets = {}, {}
    for name, tensor in document.tensors.items():
        payload = stored.tensors[_payload(name)]
        block = BlockRecord(
            codec=tensor.codec.name,
            settings=tensor.codec.settings,
            kept=tensor.kept,
            size=payload.size,
            crc32=tensor.crc32.data,
        )
        tensors[name] = TensorRecord(
            shape=tensor.shape, dtype=tensor.dtype, bits=tensor.bits, scale=tensor.scale, blocks=[block]
        )
        offsets[name] = payload.offset
    return ArtifactHeader(**described).model_copy(update={"tensors": tensors}), offsets


def _payload(name: str) -> str:
    return f"{name}/data"
