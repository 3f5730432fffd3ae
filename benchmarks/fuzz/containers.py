"""The fuzzing target of `.fsw` files, for python benchmarks/fuzz/run.py.

A file is taken apart into its JSON documents and data, some of them are changed, and it is put together
again with fitting sizes, offsets and checksums, so that the code after the checks is reached too.
"""

import copy
import json
import math
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from decoders import BITS, check_again, check_tensor, scattered
from outcomes import FindingError

from flexswitch.codecs.errors import FlexswitchError
from flexswitch.codecs.format.artifact_writer import ArtifactWriter, PackedTensor, packed_sum, packed_tensor
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.exact_forms import EXACT_FORMS, PackedExact, block_shapes, packed_exact
from flexswitch.codecs.format.extra_forms import EXTRA_FORMS, packed_extra
from flexswitch.codecs.format.records import (
    CHECKSUM_KEY,
    DATA,
    METADATA_KEY,
    TABLE,
    ArtifactHeader,
    BaseIdentity,
    MethodRecord,
    ModelRecord,
    RawTensor,
    SharedRecord,
    crc32,
)
from flexswitch.codecs.registry import CODECS, stored_codec
from flexswitch.codecs.residual import NUMBER_KINDS
from flexswitch.codecs.sparse import SparseTensor
from flexswitch.codecs.storage import store
from flexswitch.codecs.zstd import zstd_compress, zstd_decompress
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.live_weights import LiveWeights

Change = Callable[[bytes], bytes]
Payload = tuple[str, list[int], bytes]  # dtype, shape, bytes

NUMBERS = (0, 1, 2, 7, 9, 255, 1 << 17, (1 << 20) + 1, 1 << 31, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63, -1)
FIELDS = (
    "rows", "blocks", "group", "remainder", "patterns", "form", "dtype", "zero", "rank", "weights", "more",
    "level", "factor", "base_factor",
)  # fmt: skip
OTHERS: tuple[Any, ...] = (None, True, 1.0, 1e39, "", "U8", "F64", "\ud800", "ab" * 32, [], {}, [1], [0, 5])
EXACT_DTYPES = ("F32", "BF16", "F8_E4M3", "I64")
_COMPARED_ENTRIES = 1 << 22


def target(data: bytes, path: Path) -> None:
    """Writes `data` to `path` and reads the artifact completely.

    Raises: FlexswitchError if nothing of it decodes, FindingError on a violated invariant.
    """
    path.write_bytes(data)
    artifact, decoded, refusals = open_artifact(path), 0, []
    header = artifact.header
    reads: list[tuple[Callable[[Artifact, str], object], str]] = [
        *((read, name) for name in header.tensors for read in (_check_parts, _check_entries, _check_sum)),
        *((_check_exact, name) for name in header.exact),
        *((Artifact.extra, name) for name in header.extras),
    ]
    for read, name in reads:
        try:
            read(artifact, name)
            decoded += 1
        except FlexswitchError as error:
            refusals.append(error)
    if refusals and not decoded:
        raise refusals[0]


def _check_parts(artifact: Artifact, name: str) -> None:
    for number, record in enumerate(artifact.header.tensors[name].parts):
        sparse = artifact.sparse(name, number)
        check_tensor(sparse, record.layout)
        if record.zero is not None and (sparse.levels == record.zero).any():
            raise FindingError("a kept entry is at the zero point")
        found = [at + places for at, places, _ in artifact.entries(name, number)]
        if sparse.layout.entries <= _COMPARED_ENTRIES:
            marked = np.unpackbits(sparse.mask, count=sparse.layout.entries, bitorder="little")
            if not np.array_equal(np.flatnonzero(marked), np.concatenate([np.empty(0, np.int64), *found])):
                raise FindingError("its entries are not those of the whole tensor")
        for index, block in enumerate(record.blocks):
            check_again(stored_codec(block.codec, block.settings), artifact.block(name, index, number))


def _check_entries(artifact: Artifact, name: str) -> None:
    artifact.check(name)
    for number in range(len(artifact.header.tensors[name].parts)):
        artifact.row_flags(name, number)
        for _ in artifact.entries(name, number):
            pass


def _check_sum(artifact: Artifact, name: str) -> None:
    """Adds a tensor's parts up, block by block, unless it is large."""
    if math.prod(artifact.header.tensors[name].shape) <= _COMPARED_ENTRIES:
        base = LiveWeights({name: torch.zeros(artifact.header.tensors[name].shape)})
        if sum(map(len, ArtifactVector(artifact, base).blocks(name))) != base.tensors[name].entries:
            raise FindingError("its parts have another number of entries")


def _check_exact(artifact: Artifact, name: str) -> None:
    """Decodes a tensor that is stored exactly, by a base of ones' bytes."""
    record = artifact.header.exact[name]
    for index, (rows, columns) in enumerate(block_shapes(tuple(record.shape))):
        base = b"\1" * (rows * columns * NUMBER_KINDS[record.dtype].width // 8)
        if len(artifact.exact_block(name, index, base)) != len(base):
            raise FindingError("a block of another size than the base's")


# Taking apart and putting together


@dataclass
class Pieces:
    """The two documents of an artifact, and its other tensors."""

    document: Any
    table: Any
    payloads: dict[str, Payload]


def take_apart(data: bytes) -> Pieces:
    """Returns an artifact's pieces. Raises: any error if the file is damaged too much."""
    (length,) = struct.unpack_from("<Q", data)
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    document = json.loads(header.pop("__metadata__")[METADATA_KEY])
    payloads = {
        name: (str(entry["dtype"]), list(entry["shape"]), body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }
    table = json.loads(zstd_decompress(payloads.pop(TABLE)[2], 1 << 22))
    return Pieces(document, table, payloads)


def put_together(pieces: Pieces) -> bytes:
    """Returns the file; its sizes, offsets and checksums fit as far as the documents allow."""
    document, payloads = pieces.document, dict(pieces.payloads)
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        data, used = pieces.payloads[DATA][2], 0
        for record in _records(pieces):
            record["crc32"] = crc32(data[used : used + record["size"]])
            used += record["size"]
    table = zstd_compress(_json(pieces.table))
    payloads[TABLE] = ("U8", [len(table)], table)
    if isinstance(document, dict) and "table" in document:
        document["table"] = {"size": len(table), "crc32": crc32(table)}
    text, entries, end = _json(document), {}, 0
    for name, (dtype, shape, data) in payloads.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    metadata = {METADATA_KEY: text.decode(), CHECKSUM_KEY: crc32(text)}
    header = _json({"__metadata__": metadata, **entries})
    return struct.pack("<Q", len(header)) + header + b"".join(data for _, _, data in payloads.values())


def _records(pieces: Pieces) -> list[dict[str, Any]]:
    """Returns the records of all extras and blocks, in the order of their bytes."""
    tensors = pieces.table["tensors"].values()
    parts = [part for each in tensors for part in [each, *each.get("more", [])]]
    blocks = [block for part in parts for block in [part.get("rows"), *part["blocks"]] if block]
    exact = [block for each in pieces.table.get("exact", {}).values() for block in each["blocks"]]
    return [*pieces.table.get("extras", {}).values(), *blocks, *exact]


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


# Changing


def mutate(data: bytes, draw: random.Random, change: Change) -> bytes:
    """Returns a file with some changed pieces. change: changes bytes."""
    try:
        pieces = take_apart(data)
    except Exception:  # a damaged file: only its bytes can be changed
        return change(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        action = draw.randrange(12)
        if action == 0:
            return change(put_together(pieces))
        if action < 5:
            _change_json(pieces, "document" if action == 1 else "table", draw)
        elif action < 10:
            with suppress(AttributeError, KeyError, TypeError, ValueError, IndexError):
                _change_record(pieces, draw, change)
        else:
            _change_payload(pieces, draw, change)
    return put_together(pieces)


def _change_json(pieces: Pieces, which: str, draw: random.Random) -> None:
    """Changes, removes or replaces one value, at any depth, in one of the two documents."""
    root = {"": getattr(pieces, which)}
    places = list(_places(root))
    holder, key = draw.choice(places[1:] or places)
    value, action = holder[key], draw.randrange(8)
    if action == 0:
        del holder[key]
    elif action == 1:
        other, name = draw.choice(places)
        holder[key] = copy.deepcopy(other[name])
    elif action == 2:
        holder[key] = copy.deepcopy(draw.choice(OTHERS))
    elif isinstance(value, list):
        holder[key] = value[:-1] if action < 5 else [*value, *copy.deepcopy(value[-1:] or [1])]
    elif isinstance(value, dict):
        value[draw.choice(FIELDS)] = draw.choice((1, copy.deepcopy(value)))
    elif isinstance(value, str):
        holder[key] = draw.choice((*CODECS, *EXTRA_FORMS, *EXACT_FORMS, "BF16", "I64", value + "x"))
    elif isinstance(value, int) and action < 6:
        holder[key] = draw.choice(
            (value - 1, value + 1, 2 * value, value // 2, value ^ 1 << draw.randrange(20))
        )
    else:
        holder[key] = draw.choice(NUMBERS)
    setattr(pieces, which, root.get(""))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _change_record(pieces: Pieces, draw: random.Random, change: Change) -> None:
    """Changes the bytes of one block or extra, and the size in its record with them."""
    records, data = _records(pieces), pieces.payloads[DATA][2]
    number = draw.randrange(len(records))
    start = sum(record["size"] for record in records[:number])
    end = start + records[number]["size"]
    changed = change(data[start:end])
    records[number]["size"] = len(changed)
    data = data[:start] + changed + data[end:]
    pieces.payloads[DATA] = ("U8", [len(data)], data)


def _change_payload(pieces: Pieces, draw: random.Random, change: Change) -> None:
    """Changes, adds or removes one safetensors tensor."""
    name = draw.choice([*pieces.payloads, "more"])
    dtype, shape, data = pieces.payloads.get(name, ("U8", [0], b""))
    action = draw.randrange(4)
    if action == 0:
        pieces.payloads.pop(name, None)
    elif action == 1:
        pieces.payloads[name] = (draw.choice(("U8", "F32", "BF16", "BOOL", "F4")), shape, data)
    elif action == 2:
        pieces.payloads[name] = (dtype, [*shape, draw.choice((0, 1, 2, 1 << 40))], data)
    else:
        data = change(data)
        pieces.payloads[name] = (dtype, [len(data)], data)


def changed_bytes(data: bytes, draw: random.Random) -> bytes:
    """Returns bytes with one random change, for use without the fuzzer."""
    place, value = draw.randrange(len(data) + 1), draw.randbytes(1)
    rest = data[place + draw.choice((0, 1, 1, 1, 1, 5)) :]
    return data[:place] + draw.choice((value, value, value * 3, b"", b"\0")) + rest


# Files to begin with


def seeds(folder: Path) -> Iterator[bytes]:
    """Yields valid artifacts that together hold blocks of every codec and extras of every form."""
    draw, path = random.Random(0), folder / "seed.fsw"
    head = np.linspace(0, 1, 600, dtype="<f4").tobytes()
    for number, name in enumerate(CODECS):
        with ArtifactWriter(path) as writer:
            writer.add_extra("head", packed_extra(RawTensor("F32", (3, 200), head)))
            writer.add_extra("bias", packed_extra(RawTensor("F32", (2, 1), draw.randbytes(8))))
            writer.add_extra("empty", packed_extra(RawTensor("I64", (0, 3), b"")))
            for place, shape in enumerate([(5, 59), (400, 4, 5), (7,), (0, 3), ()]):
                sparse = _scattered(shape, BITS[1 + (number + place) % (len(BITS) - 1)], number)
                codec = name if place < 3 else "auto"
                writer.add_tensor(f"{place}", packed_tensor(sparse, store(sparse, codec), 0.5, "BF16"))
            writer.finish(_header())
        yield path.read_bytes()
    long = scattered((9, 66_000), 1, 1e-4, 0)  # two blocks, of 8 rows and of one
    yield _artifact_of(path, packed_tensor(long, store(long, "rice"), 1.0, "F32"))
    zero = _with_zero(_scattered((400, 4, 5), 3, 0), 2)
    yield _artifact_of(path, packed_tensor(zero, store(zero), 0.5, "F32", 2))
    mask = _scattered((400, 4, 5), 0, 0)
    yield _artifact_of(path, packed_tensor(mask, store(mask), 1.5, "F32"), "product")
    factors = scattered((24 + 16, 3), 32, 1.0, 0)
    product = packed_tensor(factors, store(factors), 1.0, "F32", shape=(24, 16))
    yield _artifact_of(path, product, "sum")
    weighted = packed_tensor(factors, store(factors), 1.0, "F32", shape=(24, 16), weights=[1.0, -0.5, 0.0])
    sparse = _scattered((24, 16), 4, 0)
    parts = [weighted, packed_tensor(sparse, store(sparse), 0.5, "F32"), product]
    yield _artifact_of(path, packed_sum(parts, -0.25))
    for dtype, kind in ((each, NUMBER_KINDS[each]) for each in EXACT_DTYPES):
        base = np.ones(7 * 9 * kind.width // 8, np.uint8).view(kind.dtype)
        found = base + (np.arange(63) % 5 // 3).astype(kind.dtype)
        for after in (base, found, found[::-1] ^ np.arange(63).astype(kind.dtype) * kind.dtype.type(77)):
            yield _artifact_of(path, packed_exact((7, 9), dtype, [(base.tobytes(), after.tobytes())]))


def _artifact_of(
    path: Path, tensor: PackedTensor | PackedExact, rule: Literal["sum", "product"] | None = None
) -> bytes:
    """Returns an artifact of one tensor. rule: by which it meets a shared vector, if it does."""
    shared = SharedRecord(sha256="cd" * 32, rule=rule) if rule else None
    with ArtifactWriter(path) as writer:
        writer.add_tensor("w", tensor)
        writer.finish(_header().model_copy(update={"shared": shared}))
    return path.read_bytes()


def _scattered(shape: tuple[int, ...], bits: int, seed: int) -> SparseTensor:
    """Returns a random tensor; if it has many rows, most of them are empty."""
    sparse = scattered(shape, bits, 0.3, seed)
    if not shape or shape[0] < 100:
        return sparse
    kept = np.unpackbits(sparse.mask, count=math.prod(shape), bitorder="little").reshape(shape[0], -1)
    left = kept * (np.arange(shape[0]) % 20 == 3)[:, None]
    mask, full = np.packbits(left, bitorder="little"), int(left.sum())
    return SparseTensor(shape, mask, sparse.levels[:full], bits)


def _with_zero(sparse: SparseTensor, zero: int) -> SparseTensor:
    """Returns a tensor without levels that are the zero point."""
    levels = np.where(sparse.levels == zero, zero + 1, sparse.levels).astype(sparse.levels.dtype)
    return SparseTensor(sparse.shape, sparse.mask, levels, sparse.bits)


def _header() -> ArtifactHeader:
    return ArtifactHeader(
        name="task",
        base=BaseIdentity(fingerprint="ab" * 32),
        model=ModelRecord(prefix="bert.", config={"labels": [0, 1.5, None]}),
        method=MethodRecord(name="t-switch", settings={"drop": 0.6}),
        parameters=1000,
    )
