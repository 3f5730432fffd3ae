"""Artifacts that the tests of the container share, and ways to damage them."""

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from safetensors.numpy import load_file
from support.sparse_tensors import assert_same, header, sparse_tensor

from flexswitch.codecs.blocks import take_rows
from flexswitch.codecs.codec import Codec
from flexswitch.codecs.errors import ArtifactError, FlexswitchError
from flexswitch.codecs.format.artifact_writer import PackedTensor
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.records import (
    CHECKSUM_KEY,
    METADATA_KEY,
    MethodRecord,
    ModelRecord,
    RawTensor,
    crc32,
)
from flexswitch.codecs.format.safetensors_file import read_header
from flexswitch.codecs.registry import stored_codec
from flexswitch.codecs.sparse import SparseTensor
from flexswitch.codecs.storage import StoredBlock, StoredForm

GOLDEN = Path(__file__).resolve().parent.parent / "golden"

Tensors = dict[str, tuple[SparseTensor, float, Codec | StoredForm]]
Document = dict[str, Any]
Change = Callable[[Document], object]


def by_rows(sparse: SparseTensor, rows: list[int], codec: Codec) -> StoredForm:
    """Returns the stored form, by one codec, of a matrix that keeps entries in these rows alone."""
    columns = math.prod(sparse.shape[1:])
    flags = sparse_tensor(sparse.shape[:1], rows, [0] * len(rows), 0)
    marked = np.isin(np.arange(sparse.shape[0]), rows)
    taken = SparseTensor(
        (len(rows), columns), take_rows(sparse.mask, columns, marked), sparse.levels, sparse.bits
    )
    stored = [StoredBlock(codec, len(part.levels), codec.encode(part)) for part in (flags, taken)]
    return StoredForm(stored[0], (stored[1],))


WORDS = sparse_tensor((90, 2, 3), [9, 12, 14, 539], [0, 1, 1, 0], 1)
TENSORS: Tensors = {
    "encoder.weight": (
        sparse_tensor((3, 7), [1, 4, 5, 14, 20], [3, 0, 2, 1, 3], 2),
        0.75,
        stored_codec("grouped-coo", {"group": 4}),
    ),
    "encoder.bias": (sparse_tensor((9,), [0, 8], [1, 0], 1), 0.1, stored_codec("bitmask", {})),
    "head.ß": (sparse_tensor((2, 2), [0, 3], [0xBF80, 0x4000], 16), 1.0, stored_codec("raw", {})),
}
ROWS: Tensors = TENSORS | {"words": (WORDS, 0.5, by_rows(WORDS, [1, 2, 89], stored_codec("bitmask", {})))}
EXTRAS = {
    "classifier.weight": RawTensor("F32", (2, 3), np.arange(6, dtype="<f4").tobytes()),
    "position_ids": RawTensor("I64", (1, 2), np.arange(2, dtype="<i8").tobytes()),
    "empty": RawTensor("F16", (0, 4), b""),
    "pooler": RawTensor("F32", (20, 20), np.linspace(-1, 1, 400, dtype="<f4").tobytes()),
}
HEADER = header(
    model=ModelRecord(
        adapter="hf-encoder", prefix="bert.", config={"num_labels": 2, "limit": [0.0, math.inf]}
    ),
    method=MethodRecord(name="t-switch", settings={"drop": 0.6, "side": "both", "count": 3, "seed": 7}),
)


def assert_holds(artifact: Artifact, tensors: Tensors) -> None:
    """Checks every tensor, in order, and every extra."""
    assert list(artifact.header.tensors) == list(tensors)
    for name, (sparse, scale, _) in tensors.items():
        record = artifact.header.tensors[name]
        assert_same(artifact.sparse(name), sparse)
        assert (record.scale, record.dtype) == (scale, "F32")
    assert {name: artifact.extra(name) for name in artifact.header.extras} == EXTRAS


def read_all(path: Path) -> None:
    """Reads everything that an artifact holds."""
    artifact = open_artifact(path)
    for name in artifact.header.tensors:
        artifact.sparse(name)
    for name in artifact.header.extras:
        artifact.extra(name)


def message(path: Path, error: type[FlexswitchError] = ArtifactError) -> str:
    """Returns the one line that opening ends with, behind the file's name."""
    with pytest.raises(error) as caught:
        open_artifact(path)
    assert type(caught.value) is error
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


def flip(path: Path, bit: int) -> None:
    """Flips one bit of a file in place."""
    with path.open("r+b", buffering=0) as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def flip_block_bit(path: Path, bit: int = 0) -> None:
    """Flips one bit of an artifact's blocks, counted from the start of the first one."""
    start = read_header(path, ArtifactError).tensors["data"].offset + open_artifact(path).extra_bytes()
    flip(path, 8 * start + bit)


# --- changes of what an artifact says ---------------------------------------------------------------------


def split(path: Path) -> tuple[Document, bytes]:
    """Returns a file's safetensors header, and the bytes behind it."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def rewrite(path: Path, stored: Document, data: bytes) -> Path:
    """Writes a safetensors header and the bytes behind it."""
    head = json.dumps(stored).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)
    return path


def damage(path: Path, change: Change, keep_checksum: bool = False) -> Path:
    """Changes an artifact's JSON document and makes its checksum fit, unless told not to."""
    stored, data = split(path)
    document = json.loads(stored["__metadata__"][METADATA_KEY])
    change(document)
    text = json.dumps(document)
    stored["__metadata__"][METADATA_KEY] = text
    if not keep_checksum:
        stored["__metadata__"][CHECKSUM_KEY] = crc32(text.encode())
    return rewrite(path, stored, data)


def read_table(path: Path) -> Document:
    """Returns the JSON document of an artifact's table."""
    stored, data = split(path)
    begin, end = stored["table"]["data_offsets"]
    reader = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    document: Document = json.loads(reader.decompress(data[begin:end]))
    return document


def frame(data: bytes) -> bytes:
    """Returns a zstandard frame as artifacts hold it."""
    parameters = zstandard.ZstdCompressionParameters(format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def damage_table(path: Path, change: Change) -> Path:
    """Changes the document of an artifact's table and makes every size and checksum fit."""
    return damage_whole_table(path, lambda document: change(document["tensors"]))


def damage_whole_table(path: Path, change: Change) -> Path:
    """Changes an artifact's table, extras included, and makes every size and checksum fit."""
    document = read_table(path)
    change(document)
    return put_table(path, frame(json.dumps(document).encode()))


def stored_form(artifact: Artifact, name: str) -> PackedTensor:
    """Returns a compressed tensor as it is stored: its record and the bytes of its blocks."""
    header, data = artifact.header, load_file(artifact.path)["data"].tobytes()
    start = artifact.extra_bytes()
    for other, record in header.tensors.items():
        if other == name:
            return PackedTensor(record, data[start : start + record.size])
        start += record.size
    raise KeyError(name)


def put_table(path: Path, table: bytes) -> Path:
    """Puts other bytes in the place of an artifact's table, which ends it, and makes all around it fit."""
    stored, data = split(path)
    begin, end = stored["table"]["data_offsets"]
    assert end == len(data)
    stored["table"] = {"dtype": "U8", "shape": [len(table)], "data_offsets": [begin, begin + len(table)]}
    rewrite(path, stored, data[:begin] + table)
    return damage(path, lambda document: document.update(table={"size": len(table), "crc32": crc32(table)}))
