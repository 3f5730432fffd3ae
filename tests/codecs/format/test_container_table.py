"""The table of an artifact: each inconsistency is refused with one line that says what is wrong."""

import json
import math
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from support.artifact_files import (
    EXTRAS,
    HEADER,
    ROWS,
    Change,
    Document,
    damage,
    damage_table,
    damage_whole_table,
    frame,
    message,
    put_table,
    rewrite,
    split,
)
from support.sparse_tensors import write_artifact

from flexswitch.codecs.errors import ArtifactError, DecodeError
from flexswitch.codecs.format.artifact_table import most_table_bytes
from flexswitch.codecs.format.artifact_writer import ArtifactWriter, PackedTensor
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.records import BlockRecord, TensorRecord, crc32
from flexswitch.codecs.format.safetensors_file import read_header
from flexswitch.codecs.registry import CODECS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small artifact with a tensor of each sort."""
    return write_artifact(tmp_path / "sst2.fsw", ROWS, EXTRAS, HEADER)


def first(document: Document) -> Document:
    found: Document = document["encoder.weight"]
    return found


COUNT = "Input should be greater than or equal to 0"
INTEGER = "Input should be a valid integer"
BITS_TOLD = "Input should be 0, 1, 2, 3, 4, 5, 6, 7, 8, 16 or 32"


# --- the table --------------------------------------------------------------------------------------------

RECORD = "tensors.encoder.weight"


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        (lambda t: t.update(new=7), "tensors.new", "Input should be an object"),
        (lambda t: first(t).update(shape=[3, -7]), f"{RECORD}.shape.1", COUNT),
        (lambda t: first(t).update(shape=[True]), f"{RECORD}.shape.0", INTEGER),
        (
            lambda t: first(t).update(shape=[1] * 65),
            f"{RECORD}.shape",
            "List should have at most 64 items after validation, not 65",
        ),
        (lambda t: first(t).update(bits=9), f"{RECORD}.bits", BITS_TOLD),
        (lambda t: first(t).update(bits=-1), f"{RECORD}.bits", BITS_TOLD),
        (lambda t: first(t).update(scale=-0.5), f"{RECORD}.scale", COUNT),
        (lambda t: first(t).update(scale="1"), f"{RECORD}.scale", "Input should be a valid number"),
        (lambda t: first(t).update(scale=math.nan), f"{RECORD}.scale", "Input should be a finite number"),
        (lambda t: first(t).update(scale=math.inf), f"{RECORD}.scale", "Input should be a finite number"),
        (
            lambda t: first(t).update(scale=1e39),
            f"{RECORD}.scale",
            "Input should be less than or equal to 340282350000000000000000000000000000000",
        ),
        (lambda t: first(t).pop("blocks"), f"{RECORD}.blocks", "Field required"),
        (lambda t: first(t).update(kept=5), f"{RECORD}.kept", "Extra inputs are not permitted"),
        (lambda t: first(t)["blocks"][0].update(kept=-1), f"{RECORD}.blocks.0.kept", COUNT),
        (lambda t: first(t)["blocks"][0].update(size=-1), f"{RECORD}.blocks.0.size", COUNT),
        (lambda t: first(t)["blocks"][0].update(crc32=7), f"{RECORD}.blocks.0.crc32", "Input should be a valid string"),
        (
            lambda t: first(t)["blocks"][0].update(settings={"group": 4.0}),
            f"{RECORD}.blocks.0.settings.group",
            INTEGER,
        ),
        (lambda t: t["words"]["rows"].pop("codec"), "tensors.words.rows.codec", "Field required"),
    ],
)  # fmt: skip
def test_a_wrong_field_of_the_table_is_named(path: Path, change: Change, field: str, expected: str) -> None:
    assert message(damage_table(path, change)) == f"its field '{field}' is wrong: {expected}"


def keep(record: Document, kept: int) -> None:
    record["blocks"][0]["kept"] = kept


BLOCK_COUNTS = "of shape {} has {} blocks, expected {}; its header is damaged"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda r: keep(r, 22), "of shape [3, 7] and dtype F32 keeps 22 entries; its header is damaged"),
        (lambda r: r.update(dtype="F31"), "of shape [3, 7] and dtype F31 keeps 5 entries; its header is damaged"),
        (lambda r: r.update(shape=[0, 7]), "of shape [0, 7] and dtype F32 keeps 5 entries; its header is damaged"),
        (lambda r: r.update(shape=[2, 2]), "of shape [2, 2] and dtype F32 keeps 5 entries; its header is damaged"),
        (lambda r: r.update(blocks=[]), BLOCK_COUNTS.format([3, 7], 0, 1)),
        (lambda r: r["blocks"].append(r["blocks"][0] | {"size": 0}), BLOCK_COUNTS.format([3, 7], 2, 1)),
        (lambda r: r.update(shape=[3, 1 << 17]), None),
        (lambda r: r.update(shape=[9, 1 << 17]), BLOCK_COUNTS.format([9, 1 << 17], 1, 2)),
        (lambda r: r.update(shape=[9, (1 << 17) + 1]), BLOCK_COUNTS.format([9, (1 << 17) + 1], 1, 2)),
        (lambda r: r.update(shape=[(1 << 20) + 1]), BLOCK_COUNTS.format([(1 << 20) + 1], 1, 2)),
        (lambda r: r.update(shape=[1 << 20]), None),
    ],
)  # fmt: skip
def test_a_tensor_that_cannot_be_is_refused(path: Path, change: Change, expected: str | None) -> None:
    def change_sizes(table: Document) -> None:
        record, before = first(table), first(table)["blocks"][0]["size"]
        change(record)
        table["words"]["blocks"][0]["size"] += before - sum(block["size"] for block in record["blocks"])

    damage_table(path, change_sizes)
    if expected is None:
        open_artifact(path)
    else:
        assert message(path) == f"tensor 'encoder.weight' {expected}"


@pytest.mark.parametrize(
    ("kept", "rows", "expected"),
    [
        (4, 91, "has a block that keeps 91 of 90 entries; its header is damaged"),
        (19, 3, "has a block that keeps 19 of 18 entries; its header is damaged"),
        (7, 1, "has a block that keeps 7 of 6 entries; its header is damaged"),
        (4, 0, "has row flags for 0 of 90 rows; its header is damaged"),
    ],
)
def test_a_block_that_keeps_more_than_it_has_is_refused(
    path: Path, kept: int, rows: int, expected: str
) -> None:
    def change(table: Document) -> None:
        keep(table["words"], kept)
        table["words"]["rows"]["kept"] = rows

    assert message(damage_table(path, change)) == f"tensor 'words' {expected}"


def test_an_extra_of_an_unknown_dtype_is_refused(path: Path) -> None:
    damage_whole_table(path, lambda document: document["extras"]["empty"].update(dtype="F31"))
    assert message(path) == "extra 'empty' has the dtype F31; its header is damaged"


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        (lambda e: e.update(crc32="x"), "crc32", "String should match pattern '^[0-9a-f]{8}$'"),
        (lambda e: e.update(size=-1), "size", COUNT),
        (lambda e: e.update(shape=[2, True]), "shape.1", INTEGER),
        (lambda e: e.pop("form"), "form", "Field required"),
        (lambda e: e["form"].update(settings={"bits": "2"}), "form.settings.bits", INTEGER),
        (lambda e: e["form"].update(codec="raw"), "form.codec", "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_field_of_an_extra_is_named(path: Path, change: Change, field: str, expected: str) -> None:
    damage_whole_table(path, lambda document: change(document["extras"]["pooler"]))
    assert message(path) == f"its field 'extras.pooler.{field}' is wrong: {expected}"


@pytest.mark.parametrize("other", [True, False])
def test_a_file_of_other_tensors_is_refused(path: Path, other: bool) -> None:
    stored, data = split(path)
    stored["blocks"] = stored.pop("data")
    names = ["blocks", "table"]
    if other:
        end = stored["table"]["data_offsets"][1]
        stored["data"] = {"dtype": "U8", "shape": [0], "data_offsets": [end, end]}
        names = ["blocks", "data", "table"]
    rewrite(path, stored, data)
    assert message(path) == f"holds the tensors {names}, expected ['data', 'table']; it is damaged"


def test_lengths_that_do_not_add_up_are_refused(path: Path) -> None:
    size = split(path)[0]["data"]["shape"][0]
    damage_table(path, lambda table: first(table)["blocks"][0].update(size=1006))
    assert message(path) == (
        f"its table lists {size + 1000:,} bytes of data, and it holds {size:,}; it is damaged"
    )
    damage_table(path, lambda table: table.pop("encoder.weight"))
    assert (
        message(path) == f"its table lists {size - 6:,} bytes of data, and it holds {size:,}; it is damaged"
    )


def test_a_table_of_another_size_is_refused(path: Path) -> None:
    damage(path, lambda document: document["table"].update(size=document["table"]["size"] - 1))
    assert message(path) == "its table of tensors is damaged: its size or checksum does not fit"


FRAME = frame(json.dumps({"tensors": {}}).encode())


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (b"", "its field '' is wrong: Invalid JSON: "),
        (b"\0", "its table of tensors does not decode: not a whole zstandard frame: "),
        (b"{}", "its table of tensors does not decode: not a whole zstandard frame: "),
        (FRAME[:-1], "its table of tensors does not decode: not a whole zstandard frame: "),
        (FRAME + b"\0", "its table of tensors does not decode: not a whole zstandard frame: "),
        (FRAME + FRAME, "its table of tensors does not decode: not a whole zstandard frame: "),
        (zstandard.FRAME_HEADER + FRAME, "its table of tensors does not decode: "),
        (frame(b"\xff{}"), "its table of tensors does not decode: 'utf-8' codec can't decode byte 0xff "),
        (frame(b"[1]"), "its field '' is wrong: Input should be an object"),
        (frame(b""), "its table of tensors does not decode: a zstandard frame of 0 bytes, expected 1 to "),
        (frame(b'{"tensors": {}'), "its field '' is wrong: Invalid JSON: "),
        (frame(b"{}"), "its field 'tensors' is wrong: Field required"),
    ],
)
def test_a_table_that_is_none_is_refused(path: Path, table: bytes, expected: str) -> None:
    assert message(put_table(path, table)).startswith(expected)


BOMB = frame(bytes(1 << 27))
# A frame whose head promises 2^40 bytes, and then has an empty last block.
PROMISE = b"\xc0\x00" + (1 << 40).to_bytes(8, "little") + b"\x01\x00\x00"


@pytest.mark.parametrize(("table", "content"), [(BOMB, 1 << 27), (PROMISE, 1 << 40)])
def test_a_table_that_would_grow_without_bounds_takes_no_memory(
    path: Path, table: bytes, content: int
) -> None:
    put_table(path, table)
    stored = sum(tensor.size for tensor in read_header(path, ArtifactError).tensors.values())
    tracemalloc.start()
    found = message(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == (
        f"its table of tensors does not decode: a zstandard frame of {content} bytes, "
        f"expected 1 to {min(most_table_bytes(stored), len(table) << 15)}"
    )
    assert peak < 1 << 20


def test_a_shape_of_countless_blocks_takes_no_memory(path: Path) -> None:
    shape = [1 << 17, 1 << 17]
    damage_table(path, lambda table: first(table).update(shape=shape))
    tracemalloc.start()
    found = message(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == f"tensor 'encoder.weight' {BLOCK_COUNTS.format(shape, 1, 1 << 14)}"
    assert peak < 1 << 20


def test_empty_rows_without_end_are_refused(tmp_path: Path) -> None:
    flags = BlockRecord(codec="bitmask", kept=0, size=1, crc32=crc32(b"\0"))
    record = TensorRecord(shape=[8, 1 << 50], scale=0.5, rows=flags, blocks=[])
    with ArtifactWriter(tmp_path / "a.fsw") as writer:
        writer.add_tensor("w", PackedTensor(record, b"\0"))
        writer.finish(HEADER)
    with pytest.raises(ArtifactError):
        open_artifact(tmp_path / "a.fsw").sparse("w")


def test_a_table_of_blocks_that_are_all_alike_is_read(tmp_path: Path) -> None:
    block = BlockRecord(codec="context", kept=0, size=0, crc32="00000000")
    record = TensorRecord(shape=[1 << 31], scale=0.5, blocks=[block] * 2048)
    with ArtifactWriter(tmp_path / "a.fsw") as writer:
        writer.add_tensor("w", PackedTensor(record, b""))
        writer.finish(HEADER)
    assert open_artifact(tmp_path / "a.fsw").header.tensors == {"w": record}


# --- blocks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda r: keep(r, 4), "5 entries are marked as kept, expected 4"),
        (lambda r: r.update(shape=[3, 700]), "6 bytes, expected at least 66"),
        (lambda r: r.update(bits=4), "6 bytes, expected at least 7"),
        (
            lambda r: r["blocks"][0].update(codec="bitmsk"),
            f"no codec is named 'bitmsk'; did you mean 'bitmask'? (known: {', '.join(CODECS)}); "
            "a newer flexswitch may know it",
        ),
        (
            lambda r: r["blocks"][0].update(settings={"group": 6}),
            "the codec grouped-coo does not accept the settings {'group': 6}: group 6, expected one of "
            "(4, 8, 16, 32, 64, 128, 256)",
        ),
    ],
)
def test_a_wrong_record_of_a_block_is_reported_with_its_place(
    path: Path, change: Change, expected: str
) -> None:
    damage_table(path, lambda table: change(first(table)))
    with pytest.raises(DecodeError) as caught:
        open_artifact(path).sparse("encoder.weight")
    assert str(caught.value) == f"{path}: tensor 'encoder.weight', block 0: {expected}"


def test_a_wrong_record_of_the_rows_is_reported_with_their_place(path: Path) -> None:
    damage_table(path, lambda table: table["words"]["rows"].update(kept=2))
    artifact = open_artifact(path)
    with pytest.raises(DecodeError) as caught:
        artifact.row_flags("words")
    assert str(caught.value) == (
        f"{path}: tensor 'words', row flags: 3 entries are marked as kept, expected 2"
    )
    with pytest.raises(DecodeError, match=r": tensor 'words', block 0: "):
        artifact.sparse("words")
