"""The `.fsw` file: what is written is read, and the same input gives the same bytes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import zstandard
from safetensors import safe_open
from safetensors.numpy import load_file
from support.artifact_files import (
    EXTRAS,
    HEADER,
    ROWS,
    TENSORS,
    Tensors,
    assert_holds,
    message,
    read_table,
    stored_form,
)
from support.sparse_tensors import assert_same, every_codec, header, sparse_tensor, write_artifact

from flexswitch.codecs.codec import Codec
from flexswitch.codecs.format.artifact_writer import ArtifactWriter, packed_tensor
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.extra_forms import packed_extra
from flexswitch.codecs.format.records import (
    CHECKSUM_KEY,
    METADATA_KEY,
    BlockRecord,
    ModelRecord,
    crc32,
    float32_scale,
)
from flexswitch.codecs.sparse import SparseTensor
from flexswitch.codecs.storage import store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small artifact with a tensor of each sort."""
    return write_artifact(tmp_path / "sst2.fsw", ROWS, EXTRAS, HEADER)


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
        for bits in (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)
    }
    artifact = open_artifact(write_artifact(tmp_path / "a.fsw", tensors))
    for name, (sparse, _, _) in tensors.items():
        assert_same(artifact.sparse(name), sparse)
        data = codec.encode(SparseTensor((1, 300), sparse.mask, sparse.levels, sparse.bits))
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
    with ArtifactWriter(tmp_path / "copy.fsw") as writer:
        for name in artifact.header.extras:
            writer.add_extra(name, packed_extra(artifact.extra(name)))
        for name in artifact.header.tensors:
            writer.add_tensor(name, stored_form(artifact, name))
        writer.finish(artifact.header)
    assert (tmp_path / "copy.fsw").read_bytes() == path.read_bytes()


def test_any_safetensors_reader_opens_an_artifact(path: Path) -> None:
    arrays = load_file(path)
    artifact = open_artifact(path)
    assert arrays.keys() == {"data", "table"}
    assert all(array.dtype == np.uint8 and array.ndim == 1 for array in arrays.values())
    records = [*artifact.header.extras.values(), *artifact.header.tensors.values()]
    assert arrays["data"].size == sum(record.size for record in records)
    assert arrays["data"].tobytes().startswith(EXTRAS["classifier.weight"].data)
    with safe_open(path, framework="np") as opened:
        metadata = opened.metadata()
    assert set(metadata) == {METADATA_KEY, CHECKSUM_KEY}
    assert metadata[CHECKSUM_KEY] == crc32(metadata[METADATA_KEY].encode())
    table = json.loads(metadata[METADATA_KEY])["table"]
    assert table == {"size": arrays["table"].size, "crc32": crc32(arrays["table"].tobytes())}


def test_the_table_is_one_zstandard_frame_without_its_magic_number(path: Path) -> None:
    stored = load_file(path)["table"].tobytes()
    text = zstandard.ZstdDecompressor().decompress(zstandard.FRAME_HEADER + stored)
    assert list(json.loads(text)) == ["extras", "tensors"]
    assert list(json.loads(text)["extras"]) == list(EXTRAS)
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
        "version": 1,
        "name": "sst2",
        "base": {"fingerprint": "ab" * 32, "id": "org/base"},
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
    assert artifact.extra_bytes() == 24 + 16 + artifact.header.extras["pooler"].size < 24 + 16 + 1600


def test_an_artifact_without_tensors_is_one(tmp_path: Path) -> None:
    artifact = open_artifact(write_artifact(tmp_path / "empty.fsw", {}))
    assert (artifact.header.tensors, artifact.header.extras, artifact.extra_bytes()) == ({}, {}, 0)
    assert artifact.header == header()


def test_a_config_keeps_infinite_numbers_in_every_file() -> None:
    record = ModelRecord(config={"time_step_limit": [0.0, math.inf]})
    assert ModelRecord.model_validate_json(record.model_dump_json()) == record


def test_an_artifact_without_a_header_is_a_bug(tmp_path: Path) -> None:
    sparse, scale, _ = TENSORS["encoder.bias"]
    packed = packed_tensor(sparse, store(sparse), scale, "F32")

    def write() -> None:
        with ArtifactWriter(tmp_path / "a.fsw") as writer:
            writer.add_tensor("encoder.bias", packed)

    with pytest.raises(ValueError, match=r"^an artifact needs a header: call finish\(header\)$"):
        write()


def test_an_interrupted_artifact_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.fsw"

    def interrupt() -> None:
        with ArtifactWriter(path) as writer:
            writer.add_extra("position_ids", packed_extra(EXTRAS["position_ids"]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert message(path).startswith("not a ")


def test_a_tensor_written_twice_is_a_bug(tmp_path: Path) -> None:
    sparse, scale, _ = TENSORS["encoder.bias"]
    packed = packed_tensor(sparse, store(sparse), scale, "F32")
    extra = packed_extra(EXTRAS["position_ids"])
    with ArtifactWriter(tmp_path / "a.fsw") as writer:
        writer.add_extra("ids", extra)
        with pytest.raises(ValueError, match=r"^ids: written twice, or behind a compressed tensor$"):
            writer.add_extra("ids", extra)
        writer.add_tensor("encoder.bias", packed)
        with pytest.raises(ValueError, match=r"^encoder\.bias: written twice$"):
            writer.add_tensor("encoder.bias", packed)
        with pytest.raises(ValueError, match=r"^more: written twice, or behind a compressed tensor$"):
            writer.add_extra("more", extra)
        writer.finish(HEADER)


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
