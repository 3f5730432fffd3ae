"""The `.fsw` file: what is written is read, block by block, and the same input gives the same bytes."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from artifact_files import EXTRAS, GOLDEN, HEADER, ROWS, TENSORS, Tensors, assert_holds, message, read_table
from pydantic import BaseModel
from safetensors import safe_open
from safetensors.numpy import load_file
from sparse_tensors import BASE, assert_same, every_codec, header, sparse_tensor, write_artifact

import flexswitch.codecs.container
from flexswitch.codecs import blocks as blocks_module
from flexswitch.codecs.artifact_writer import ArtifactWriter, packed_tensor
from flexswitch.codecs.codec import Codec
from flexswitch.codecs.container import open_artifact
from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.records import (
    CHECKSUM_KEY,
    METADATA_KEY,
    ArtifactDocument,
    ArtifactHeader,
    BaseIdentity,
    BlockRecord,
    ExtraRecord,
    MethodRecord,
    ModelRecord,
    TableRecord,
    TensorRecord,
    TensorTable,
    crc32,
    float32_scale,
)
from flexswitch.codecs.registry import stored_codec
from flexswitch.codecs.sparse import SparseTensor
from flexswitch.codecs.storage import store
from flexswitch.codecs.zoo import IndexRecord, TaskRecord, ZooRecord
from flexswitch.merging.routing.query_set import QuerySetHeader
from flexswitch.merging.task_vector_file import TaskVectorHeader

FORMAT = Path(flexswitch.codecs.container.__file__).with_name("FORMAT.md").read_text(encoding="utf-8")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small artifact with a tensor of each sort."""
    return write_artifact(tmp_path / "sst2.fsw", ROWS, EXTRAS, HEADER)


# --- what is written is read ------------------------------------------------------------------------------


def test_an_artifact_gives_back_what_was_written(path: Path) -> None:
    artifact = open_artifact(path)
    assert_holds(artifact, ROWS)
    written = artifact.header.model_copy(update={"tensors": {}, "extras": {}})
    assert written == HEADER
    assert artifact.path == path


@pytest.mark.parametrize("codec", every_codec(), ids=str)
def test_every_codec_goes_through_a_file(tmp_path: Path, codec: Codec) -> None:
    tensors: Tensors = {
        f"bits {bits}": (sparse_tensor((300,), [7, 8, 299], [1, 1, 1], bits), 0.5, codec)
        for bits in (1, 2, 4, 8, 16, 32)
    }
    artifact = open_artifact(write_artifact(tmp_path / "a.fsw", tensors))
    for name, (sparse, _, _) in tensors.items():
        assert_same(artifact.sparse(name), sparse)
        data = codec.encode(SparseTensor((1, 300), sparse.mask, sparse.levels, sparse.bits))["data"]
        block = BlockRecord(codec=codec.name, settings=vars(codec), kept=3, size=len(data), crc32=crc32(data))
        record = artifact.header.tensors[name]
        assert (record.rows, record.blocks, record.size, record.kept) == (None, [block], len(data), 3)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (0, 3), (2, 0, 5)])
def test_tensors_with_hardly_an_entry_go_through_a_file(tmp_path: Path, shape: tuple[int, ...]) -> None:
    entries = math.prod(shape)
    sparse = sparse_tensor(shape, [0] * entries, [1] * entries, 1)
    artifact = open_artifact(write_artifact(tmp_path / "a.fsw", {"w": (sparse, 0.5, store(sparse))}))
    assert len(artifact.header.tensors["w"].blocks) == entries
    assert_same(artifact.sparse("w"), sparse)


def test_the_same_input_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "another-folder" / "another-name.fsw"
    other.parent.mkdir()
    write_artifact(other, ROWS, EXTRAS, HEADER)
    assert other.read_bytes() == path.read_bytes()
    assert str(tmp_path).encode() not in path.read_bytes()


def test_tensors_go_from_one_artifact_into_another_as_they_are_stored(path: Path, tmp_path: Path) -> None:
    artifact = open_artifact(path)
    with ArtifactWriter(tmp_path / "copy.fsw", HEADER) as writer:
        for name in artifact.header.extras:
            writer.add_extra(name, artifact.extra(name))
        for name in artifact.header.tensors:
            writer.add_tensor(name, artifact.packed(name))
    assert (tmp_path / "copy.fsw").read_bytes() == path.read_bytes()


def test_any_safetensors_reader_opens_an_artifact(path: Path) -> None:
    arrays = load_file(path)
    artifact = open_artifact(path)
    blocks = b"".join(artifact.packed(name).data for name in ROWS)
    assert arrays.keys() == {"blocks", "table", *(f"extra/{name}" for name in EXTRAS)}
    assert all(arrays[name].dtype == np.uint8 and arrays[name].ndim == 1 for name in ("blocks", "table"))
    assert arrays["blocks"].tobytes() == blocks
    assert {name: arrays[f"extra/{name}"].tobytes() for name in EXTRAS} == {
        name: extra.data for name, extra in EXTRAS.items()
    }
    assert arrays["extra/classifier.weight"].shape == (2, 3)
    with safe_open(path, framework="np") as opened:
        metadata = opened.metadata()
    assert set(metadata) == {METADATA_KEY, CHECKSUM_KEY}
    assert metadata[CHECKSUM_KEY] == crc32(metadata[METADATA_KEY].encode())
    table = json.loads(metadata[METADATA_KEY])["table"]
    assert table == {"size": arrays["table"].size, "crc32": crc32(arrays["table"].tobytes())}


def test_the_table_is_one_zstandard_frame_without_its_magic_number(path: Path) -> None:
    stored = load_file(path)["table"].tobytes()
    text = zstandard.ZstdDecompressor().decompress(zstandard.FRAME_HEADER + stored)
    assert list(json.loads(text)["tensors"]) == list(ROWS)
    assert zstandard.get_frame_parameters(zstandard.FRAME_HEADER + stored).content_size == len(text)


def test_defaults_are_left_out_of_both_documents(tmp_path: Path) -> None:
    path = write_artifact(tmp_path / "sst2.fsw", {"encoder.bias": TENSORS["encoder.bias"]})
    with safe_open(path, framework="np") as opened:
        document = json.loads(opened.metadata()[METADATA_KEY])
    assert list(document) == ["format", "version", "name", "base", "method", "parameters", "table"]
    del document["table"]
    assert document == {
        "format": "flexswitch-artifact",
        "version": 2,
        "name": "sst2",
        "base": {"fingerprint": "ab" * 32, "sample": "cd" * 32, "id": "org/base"},
        "method": {"name": "t-switch", "settings": {"drop": 0.6}},
        "parameters": 1000,
    }
    block = {"codec": "bitmask", "kept": 2, "size": 3, "crc32": crc32(bytes([1, 1, 1]))}
    assert read_table(path) == {"tensors": {"encoder.bias": {"shape": [9], "scale": 0.1, "blocks": [block]}}}


def test_extras_are_described_without_being_read(path: Path) -> None:
    artifact = open_artifact(path)
    found = {name: (extra.dtype, extra.shape) for name, extra in artifact.header.extras.items()}
    assert found["classifier.weight"] == ("F32", [2, 3])
    assert found["empty"] == ("F16", [0, 4])
    assert artifact.extra_bytes() == 24 + 16


def test_an_artifact_without_tensors_is_one(tmp_path: Path) -> None:
    artifact = open_artifact(write_artifact(tmp_path / "empty.fsw", {}))
    assert (artifact.header.tensors, artifact.header.extras, artifact.extra_bytes()) == ({}, {}, 0)
    assert artifact.header == header()


def test_a_config_keeps_infinite_numbers_in_every_file() -> None:
    record = ModelRecord(config={"time_step_limit": [0.0, math.inf]})
    assert ModelRecord.model_validate_json(record.model_dump_json()) == record


def test_the_header_may_be_told_after_the_tensors(tmp_path: Path) -> None:
    sparse, scale, _ = TENSORS["encoder.bias"]
    with ArtifactWriter(tmp_path / "a.fsw", header()) as writer:
        writer.add_tensor("encoder.bias", packed_tensor(sparse, store(sparse), scale, "F32"))
        writer.set_header(HEADER)
    found = open_artifact(tmp_path / "a.fsw").header
    assert found.model_copy(update={"tensors": {}}) == HEADER


def test_an_interrupted_artifact_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.fsw"

    def interrupt() -> None:
        with ArtifactWriter(path, HEADER) as writer:
            writer.add_extra("position_ids", EXTRAS["position_ids"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert message(path).startswith("not a ")


def test_a_tensor_written_twice_is_a_bug(tmp_path: Path) -> None:
    sparse, scale, _ = TENSORS["encoder.bias"]
    packed = packed_tensor(sparse, store(sparse), scale, "F32")
    with ArtifactWriter(tmp_path / "a.fsw", HEADER) as writer:
        writer.add_tensor("encoder.bias", packed)
        with pytest.raises(ValueError, match=r"^encoder\.bias: written twice$"):
            writer.add_tensor("encoder.bias", packed)


@pytest.mark.parametrize(
    ("scale", "stored"),
    [(0.1, 0.1), (1 / 3, 0.33333334), (0.0, 0.0), (1e-45, 1e-45), (3.4028235e38, 3.4028235e38)],
)
def test_a_scale_is_the_shortest_decimal_of_its_float32(scale: float, stored: float) -> None:
    assert float32_scale(scale) == stored
    assert np.float32(float32_scale(scale)) == np.float32(scale)


def test_a_base_name_becomes_the_finetuned_name() -> None:
    assert ModelRecord().finetuned_name("layer.weight") == "layer.weight"
    assert ModelRecord(prefix="bert.").finetuned_name("layer.weight") == "bert.layer.weight"
    record = ModelRecord(base_prefix="model.", prefix="bert.")
    assert record.finetuned_name("model.layer.weight") == "bert.layer.weight"


# --- blocks -----------------------------------------------------------------------------------------------

CutUp = Callable[..., tuple[Path, SparseTensor]]


@pytest.fixture
def cut_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CutUp:
    """Writes 40 rows, of which about half is kept, with empty rows between; blocks have 640 entries at most."""
    monkeypatch.setattr(blocks_module, "BLOCK_ENTRIES", 640)
    monkeypatch.setattr(blocks_module, "_LONGEST_ROW", 80)

    def write(codec: str, spread: int = 1, columns: int = 30) -> tuple[Path, SparseTensor]:
        generator = np.random.default_rng(0)
        marked = np.zeros((40 * spread, columns), np.uint8)
        marked[::spread] = generator.random((40, columns)) < 0.5
        signs = generator.integers(0, 2, int(marked.sum()), np.uint8)
        sparse = SparseTensor(marked.shape, np.packbits(marked, bitorder="little"), signs, 1)
        return write_artifact(tmp_path / "a.fsw", {"w": (sparse, 0.5, store(sparse, codec))}), sparse

    return write


def rows_of(sparse: SparseTensor) -> np.ndarray:
    return np.unpackbits(sparse.mask, count=math.prod(sparse.shape), bitorder="little").reshape(sparse.shape)


@pytest.mark.parametrize("codec", ["bitmask", "raw", "auto"])
def test_a_block_is_read_alone(cut_up: CutUp, codec: str) -> None:
    path, sparse = cut_up(codec)
    artifact = open_artifact(path)
    record = artifact.header.tensors["w"]
    assert (record.rows, len(record.blocks)) == (None, 3)
    start, offset, used = 0, load_offset(path), 0
    whole = path.read_bytes()
    for index, block in enumerate(record.blocks):
        path.write_bytes(bytes(offset) + whole[offset : offset + block.size])  # all else is gone
        found = artifact.block("w", index)
        height = found.shape[0]
        assert np.array_equal(rows_of(found), rows_of(sparse)[start : start + height])
        assert np.array_equal(found.levels, sparse.levels[used : used + block.kept])
        start, offset, used = start + height, offset + block.size, used + block.kept
    assert (start, used) == (40, len(sparse.levels))


def load_offset(path: Path) -> int:
    """Returns where an artifact's blocks begin."""
    data = path.read_bytes()
    return data.index(load_file(path)["blocks"].tobytes())


def test_rows_that_keep_nothing_are_left_out(cut_up: CutUp) -> None:
    path, sparse = cut_up("bitmask", spread=10)
    artifact = open_artifact(path)
    record, full = artifact.header.tensors["w"], rows_of(sparse).any(axis=1)
    assert record.rows is not None
    assert record.rows.kept == full.sum()
    assert record.stored == [record.rows, *record.blocks]
    assert record.size == len(artifact.packed("w").data) == sum(block.size for block in record.stored)
    flags = artifact.row_flags("w")
    assert flags is not None
    assert np.array_equal(flags, full)
    stacked = [rows_of(artifact.block("w", index)) for index in range(len(record.blocks))]
    assert np.array_equal(np.concatenate(stacked), rows_of(sparse)[full])
    assert_same(artifact.sparse("w"), sparse)


@pytest.mark.parametrize("columns", [1, 7, 30, 80, 81, 300, 1000])
@pytest.mark.parametrize("spread", [1, 10])
@pytest.mark.parametrize("codec", ["auto", "raw", "context"])
def test_kept_entries_are_read_block_by_block(cut_up: CutUp, codec: str, spread: int, columns: int) -> None:
    path, sparse = cut_up(codec, spread, columns)
    artifact = open_artifact(path)
    found = list(artifact.entries("w"))
    assert len(found) == len(artifact.header.tensors["w"].blocks)
    places = [start + positions.astype(np.int64) for start, positions, _ in found]
    assert np.array_equal(np.concatenate(places), np.flatnonzero(rows_of(sparse)))
    assert np.array_equal(np.concatenate([levels for _, _, levels in found]), sparse.levels)


def test_a_tensor_that_keeps_something_in_each_row_has_no_flags(path: Path) -> None:
    assert open_artifact(path).row_flags("encoder.weight") is None
    flags = open_artifact(path).row_flags("words")
    assert flags is not None
    assert np.flatnonzero(flags).tolist() == [1, 2, 89]


def test_damage_to_a_block_stays_there(cut_up: CutUp) -> None:
    path, sparse = cut_up("bitmask")
    artifact, data = open_artifact(path), bytearray(path.read_bytes())
    blocks = artifact.header.tensors["w"].blocks
    offset = load_offset(path) + blocks[0].size
    data[offset + 3] ^= 8
    path.write_bytes(data)
    bad, good = crc32(data[offset : offset + blocks[1].size]), blocks[1].crc32
    told = (
        f"{path}: tensor 'w', block 1, is damaged: its checksum is {bad}, expected {good}; "
        "restore the file from a copy, or compress it again"
    )
    reads = (artifact.sparse, artifact.packed, lambda name: artifact.block(name, 1))
    for read in (*reads, lambda name: list(artifact.entries(name))):
        with pytest.raises(DecodeError) as caught:
            read("w")
        assert str(caught.value) == told
    assert np.array_equal(rows_of(artifact.block("w", 0)), rows_of(sparse)[:16])
    assert np.array_equal(rows_of(artifact.block("w", 2)), rows_of(sparse)[32:])


# --- golden files, and FORMAT.md --------------------------------------------------------------------------

LONG = sparse_tensor((2, 600_000), [0, (1 << 20) - 1, 1 << 20, 1_199_999], [1, 0, 1, 1], 1)


def test_the_golden_artifact_of_version_2_is_read(path: Path) -> None:
    artifact = open_artifact(GOLDEN / "artifact2.fsw")
    tensors: Tensors = ROWS | {"long": (LONG, 0.25, stored_codec("grouped-coo", {"group": 256}))}
    assert_holds(artifact, tensors)
    again = open_artifact(write_artifact(path, tensors, EXTRAS, HEADER))
    assert artifact.header == again.header
    assert len(artifact.header.tensors["long"].blocks) == 2
    for name in tensors:
        assert artifact.packed(name) == again.packed(name)


def worked_example(kind: str) -> dict[str, object]:
    found = re.search(r"```json\n(\{\"" + kind + r"\": *.*?)```", FORMAT, re.DOTALL)
    assert found is not None
    document: dict[str, object] = json.loads(found.group(1))
    return document


def test_the_worked_example_has_the_documents_that_are_written(tmp_path: Path) -> None:
    wanted, table = worked_example("format"), worked_example("tensors")
    written = header(
        base=BaseIdentity.model_validate(wanted["base"]),
        method=MethodRecord.model_validate(wanted["method"]),
        parameters=wanted["parameters"],
    )
    sparse, scale, _ = TENSORS["encoder.weight"]
    block = TensorTable.model_validate(table).tensors["encoder.weight"].blocks[0]
    codec = stored_codec(block.codec, block.settings)
    path = write_artifact(tmp_path / "sst2.fsw", {"encoder.weight": (sparse, scale, codec)}, {}, written)
    assert json.dumps(read_table(path)) == json.dumps(table)
    with safe_open(path, framework="np") as opened:
        found = json.loads(opened.metadata()[METADATA_KEY])
    # The frame of the table, and so its size and checksum, may differ between versions of zstandard.
    assert found.pop("table").keys() == wanted.pop("table").keys()  # type: ignore[attr-defined]
    assert json.dumps(found) == json.dumps(wanted)


def test_the_worked_example_has_the_checksum_of_its_document() -> None:
    text = json.dumps(worked_example("format"), separators=(",", ":"))
    assert f"`{crc32(text.encode())}`" in FORMAT


@pytest.mark.parametrize(
    "record",
    [
        ArtifactDocument, TensorTable, TableRecord, BlockRecord, ExtraRecord, ArtifactHeader, BaseIdentity,
        ModelRecord, MethodRecord, TensorRecord, ZooRecord, TaskRecord, IndexRecord, TaskVectorHeader,
        QuerySetHeader,
    ],
)  # fmt: skip
def test_the_format_page_names_every_field(record: type[BaseModel]) -> None:
    assert [field for field in record.model_fields if f"`{field}`" not in FORMAT] == []


def test_the_base_of_these_tests_is_a_valid_one() -> None:
    assert BaseIdentity.model_validate(BASE.model_dump()) == BASE
