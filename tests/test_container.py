"""The `.fsw` file: round trip, same bytes for the same input, and every sort of damage."""

import json
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sparse_tensors import BASE, assert_same, every_codec, header, sparse_tensor, write_artifact

import flexswitch.codecs.container
from flexswitch.codecs.codec import Codec
from flexswitch.codecs.container import (
    CHECKSUM_KEY,
    METADATA_KEY,
    Artifact,
    ArtifactHeader,
    ArtifactWriter,
    BaseIdentity,
    CodecRecord,
    MethodRecord,
    ModelRecord,
    RawTensor,
    TensorRecord,
    crc32,
    float32_scale,
    open_artifact,
)
from flexswitch.codecs.errors import ArtifactError, DecodeError, FlexswitchError, InputError
from flexswitch.codecs.registry import CODECS, stored_codec
from flexswitch.codecs.sparse import SparseTensor
from flexswitch.codecs.zoo import IndexRecord, TaskRecord, ZooRecord
from flexswitch.merging.routing.query_set import QuerySetHeader
from flexswitch.merging.task_vector_file import TaskVectorHeader

GOLDEN = Path(__file__).parent / "golden" / "artifact.fsw"
FORMAT = Path(flexswitch.codecs.container.__file__).with_name("FORMAT.md").read_text(encoding="utf-8")

Tensors = dict[str, tuple[SparseTensor, float, Codec]]
Change = Callable[[dict[str, Any]], object]

TENSORS: Tensors = {
    "encoder.weight": (
        sparse_tensor((3, 7), [1, 4, 5, 14, 20], [3, 0, 2, 1, 3], 2),
        0.75,
        stored_codec("grouped-coo", {"group": 4}),
    ),
    "encoder.bias": (sparse_tensor((9,), [0, 8], [1, 0], 1), 0.1, stored_codec("bitmask", {})),
    "head/ß": (sparse_tensor((2, 2), [0, 3], [0xBF80, 0x4000], 16), 1.0, stored_codec("raw", {})),
}
EXTRAS = {
    "classifier.weight": RawTensor("F32", (2, 3), np.arange(6, dtype="<f4").tobytes()),
    "position_ids": RawTensor("I64", (1, 2), np.arange(2, dtype="<i8").tobytes()),
    "empty": RawTensor("F16", (0, 4), b""),
}
HEADER = header(
    model=ModelRecord(
        adapter="hf-encoder", prefix="bert.", config={"num_labels": 2, "limit": [0.0, math.inf]}
    ),
    method=MethodRecord(name="t-switch", settings={"drop": 0.6, "side": "both", "count": 3}, seed=7),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small artifact with a tensor of each sort."""
    return write_artifact(tmp_path / "sst2.fsw", TENSORS, EXTRAS, HEADER)


def damage(path: Path, change: Change, keep_checksum: bool = False) -> Path:
    """Changes an artifact's JSON document in place and makes its checksum fit, unless told not to."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    stored = json.loads(data[8 : 8 + length])
    document = json.loads(stored["__metadata__"][METADATA_KEY])
    change(document)
    text = json.dumps(document)
    stored["__metadata__"][METADATA_KEY] = text
    if not keep_checksum:
        stored["__metadata__"][CHECKSUM_KEY] = crc32(text.encode())
    return rewrite(path, stored, data[8 + length :])


def rewrite(path: Path, stored: dict[str, Any], data: bytes) -> Path:
    """Writes a safetensors header and the bytes behind it."""
    head = json.dumps(stored).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)
    return path


def message(path: Path, error: type[FlexswitchError] = ArtifactError) -> str:
    """Returns the one line that opening ends with, behind the file's name."""
    with pytest.raises(error) as caught:
        open_artifact(path)
    assert type(caught.value) is error
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


def read_all(path: Path) -> None:
    artifact = open_artifact(path)
    for name in artifact.header.tensors:
        artifact.sparse(name)
    for name in artifact.header.extras:
        artifact.extra(name)


def assert_holds_everything(artifact: Artifact) -> None:
    assert list(artifact.header.tensors) == list(TENSORS)
    for name, (sparse, scale, codec) in TENSORS.items():
        record = artifact.header.tensors[name]
        assert_same(artifact.sparse(name), sparse)
        assert (record.scale, record.dtype) == (scale, "F32")
        assert record.codec == CodecRecord(name=codec.name, settings=vars(codec))
    assert {name: artifact.extra(name) for name in artifact.header.extras} == EXTRAS


# What is written is read


def test_an_artifact_gives_back_what_was_written(path: Path) -> None:
    artifact = open_artifact(path)
    assert_holds_everything(artifact)
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
        assert artifact.payload_bytes(name) == sum(map(len, codec.encode(sparse).values()))


def test_the_same_input_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "another-folder" / "another-name.fsw"
    other.parent.mkdir()
    write_artifact(other, TENSORS, EXTRAS, HEADER)
    assert other.read_bytes() == path.read_bytes()
    assert str(tmp_path).encode() not in path.read_bytes()


def test_any_safetensors_reader_opens_an_artifact(path: Path) -> None:
    arrays = load_file(path)
    payloads = {f"{name}/data": codec.encode(sparse)["data"] for name, (sparse, _, codec) in TENSORS.items()}
    extras = {f"extra/{name}": extra.data for name, extra in EXTRAS.items()}
    assert {name: array.tobytes() for name, array in arrays.items()} == payloads | extras
    assert all(arrays[name].dtype == np.uint8 and arrays[name].ndim == 1 for name in payloads)
    assert arrays["extra/classifier.weight"].shape == (2, 3)
    with safe_open(path, framework="np") as opened:
        metadata = opened.metadata()
    assert set(metadata) == {METADATA_KEY, CHECKSUM_KEY}
    assert metadata[CHECKSUM_KEY] == crc32(metadata[METADATA_KEY].encode())


def test_defaults_are_left_out_of_the_document(tmp_path: Path) -> None:
    path = write_artifact(tmp_path / "sst2.fsw", {})
    with safe_open(path, framework="np") as opened:
        document = json.loads(opened.metadata()[METADATA_KEY])
    assert document == {
        "format": "flexswitch-artifact",
        "version": 1,
        "name": "sst2",
        "base": {"fingerprint": "ab" * 32, "sample": "cd" * 32, "id": "org/base"},
        "method": {"name": "t-switch", "settings": {"drop": 0.6}},
        "parameters": 1000,
    }
    assert open_artifact(path).header == header()


def test_extras_are_described_without_being_read(path: Path) -> None:
    artifact = open_artifact(path)
    found = {name: (extra.dtype, extra.shape) for name, extra in artifact.header.extras.items()}
    assert found["classifier.weight"] == ("F32", [2, 3])
    assert found["empty"] == ("F16", [0, 4])
    assert artifact.extra_bytes() == 24 + 16
    assert artifact.payload_bytes("encoder.bias") == 3


def test_an_artifact_without_tensors_is_one(tmp_path: Path) -> None:
    artifact = open_artifact(write_artifact(tmp_path / "empty.fsw", {}))
    assert (artifact.header.tensors, artifact.header.extras, artifact.extra_bytes()) == ({}, {}, 0)


def test_a_config_keeps_infinite_numbers_in_every_file() -> None:
    record = ModelRecord(config={"time_step_limit": [0.0, math.inf]})
    assert ModelRecord.model_validate_json(record.model_dump_json()) == record


def test_an_interrupted_artifact_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.fsw"

    def interrupt() -> None:
        with ArtifactWriter(path, HEADER) as writer:
            writer.add_extra("position_ids", EXTRAS["position_ids"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert message(path).startswith("not a ")


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


def test_the_golden_artifact_is_read_and_written_again(path: Path) -> None:
    assert_holds_everything(open_artifact(GOLDEN))
    assert open_artifact(GOLDEN).header == open_artifact(path).header
    assert path.read_bytes() == GOLDEN.read_bytes()


# What is no artifact


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    told = "no such file; expected an artifact (.fsw) that `flexswitch compress` wrote"
    assert message(tmp_path / "none.fsw", InputError) == told
    assert message(tmp_path, InputError) == told


def test_another_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"a": np.zeros(3)}, path, metadata)
        told = "not a flexswitch artifact: its metadata lacks the key 'flexswitch'"
        assert message(path, InputError) == told


def test_metadata_of_null_is_no_artifact(tmp_path: Path) -> None:
    path = rewrite(tmp_path / "a.fsw", {"__metadata__": None}, b"")
    assert message(path, InputError).startswith("not a flexswitch artifact: ")


def test_a_task_vector_file_is_refused(path: Path) -> None:
    damage(path, lambda document: document.update(format="flexswitch-task-vector"))
    assert message(path, InputError) == "is a flexswitch-task-vector, expected a flexswitch-artifact"


# Damage


def test_every_truncation_is_refused(path: Path) -> None:
    data = path.read_bytes()
    for length in [*range(0, len(data) - 100, 23), *range(len(data) - 100, len(data))]:
        path.write_bytes(data[:length])
        assert message(path)


def test_bytes_behind_the_end_are_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")
    assert message(path).startswith("not a valid safetensors file (")


def flip(path: Path, bit: int) -> None:
    """Flips one bit of a file in place."""
    with path.open("r+b", buffering=0) as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def test_a_flipped_bit_of_the_header_is_refused_or_changes_nothing(path: Path) -> None:
    extras = {name: extra for name, extra in EXTRAS.items() if extra.data}
    write_artifact(path, TENSORS, extras, HEADER)
    expected = open_artifact(path).header
    payload_bytes = open_artifact(path).extra_bytes() + sum(map(open_artifact(path).payload_bytes, TENSORS))
    header_bits = 8 * (path.stat().st_size - payload_bytes)
    for bit in [*range(64), *range(64, header_bits, 3)]:
        flip(path, bit)
        told = ""
        try:
            read_all(path)
        except (ArtifactError, InputError) as error:
            told = str(error)
        # What is not told changed nothing, such as \u00DF for \u00df.
        assert told.startswith(f"{path}: ") if told else open_artifact(path).header == expected
        flip(path, bit)


def test_a_flipped_bit_of_a_payload_is_told_with_the_tensor(path: Path) -> None:
    data, artifact = path.read_bytes(), open_artifact(path)
    owners: list[tuple[str, Callable[[str], object], bytes]]
    owners = [(name, artifact.extra, EXTRAS[name].data) for name in EXTRAS]
    owners += [(name, artifact.sparse, codec.encode(s)["data"]) for name, (s, _, codec) in TENSORS.items()]
    start = len(data) - sum(len(content) for _, _, content in owners)
    for name, read, content in owners:
        assert data[start : start + len(content)] == content
        for bit in range(8 * start, 8 * (start + len(content))):
            flip(path, bit)
            with pytest.raises(DecodeError) as caught:
                read(name)
            assert str(caught.value).startswith(f"{path}: tensor '{name}' is damaged: checksum ")
            flip(path, bit)
        start += len(content)
    assert_holds_everything(artifact)


def test_a_damaged_payload_is_told_in_words(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    good = TENSORS["head/ß"][2].encode(TENSORS["head/ß"][0])["data"]
    bad = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(DecodeError) as caught:
        open_artifact(path).sparse("head/ß")
    assert str(caught.value) == (
        f"{path}: tensor 'head/ß' is damaged: checksum {crc32(bad)} of its payload 'head/ß/data', expected "
        f"{crc32(good)}; restore the file from a copy, or compress it again"
    )


def test_a_file_cut_short_after_it_was_opened_is_told(path: Path) -> None:
    artifact, total = open_artifact(path), path.stat().st_size
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ArtifactError) as caught:
        artifact.sparse("head/ß")
    assert str(caught.value) == f"{path}: ends at byte {total - 2:,}, expected {total:,}"


def test_a_changed_document_fails_its_checksum(path: Path) -> None:
    damage(path, lambda document: document.update(parameters=1001), keep_checksum=True)
    told = "its header is damaged: the checksum in 'flexswitch_crc32' does not fit"
    assert message(path) == told


def test_a_missing_checksum_is_refused(path: Path) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    stored = json.loads(data[8 : 8 + length])
    del stored["__metadata__"][CHECKSUM_KEY]
    told = "its header is damaged: the checksum in 'flexswitch_crc32' does not fit"
    assert message(rewrite(path, stored, data[8 + length :])) == told


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", '{"version": NaN', "[" * 100_000])
def test_a_document_that_is_no_json_object_is_refused(path: Path, text: str) -> None:
    rewrite(path, {"__metadata__": {METADATA_KEY: text, CHECKSUM_KEY: crc32(text.encode())}}, b"")
    assert message(path).startswith("its JSON document does not parse (")


def test_a_newer_format_asks_for_a_newer_flexswitch(path: Path) -> None:
    damage(path, lambda document: document.update(version=2, unheard_of={}))
    assert message(path) == "format version 2, this flexswitch reads 1; install a newer one"


def tensor(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["tensors"]["encoder.weight"]
    return found


TENSOR = "tensors.encoder.weight"
COUNT = "Input should be greater than or equal to 0"


@pytest.mark.parametrize(
    ("change", "field", "told"),
    [
        (lambda d: d.update(format=7), "format", "Input should be 'flexswitch-artifact'"),
        (lambda d: d.update(version=0), "version", "Input should be 1"),
        (lambda d: d.update(version="1"), "version", "Input should be 1"),
        (lambda d: d.pop("name"), "name", "Field required"),
        (lambda d: d.update(name=7), "name", "Input should be a valid string"),
        (
            lambda d: d.update(name="../x"),
            "name",
            "String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$'",
        ),
        (lambda d: d.update(colour="red"), "colour", "Extra inputs are not permitted"),
        (
            lambda d: d["base"].update(fingerprint="AB" * 32),
            "base.fingerprint",
            "String should match pattern '^[0-9a-f]{64}$'",
        ),
        (lambda d: d.update(parameters=-1), "parameters", COUNT),
        (lambda d: d.update(parameters=1.5), "parameters", "Input should be a valid integer"),
        (lambda d: d.update(parameters=1 << 63), "parameters", f"Input should be less than {1 << 63}"),
        (lambda d: tensor(d).update(shape=[3, -7]), f"{TENSOR}.shape.1", COUNT),
        (lambda d: tensor(d).update(shape=[True]), f"{TENSOR}.shape.0", "Input should be a valid integer"),
        (
            lambda d: tensor(d).update(shape=[1] * 65),
            f"{TENSOR}.shape",
            "List should have at most 64 items after validation, not 65",
        ),
        (lambda d: tensor(d).update(kept=-1), f"{TENSOR}.kept", COUNT),
        (lambda d: tensor(d).update(bits=3), f"{TENSOR}.bits", "Input should be 1, 2, 4, 8, 16 or 32"),
        (lambda d: tensor(d).update(scale=-0.5), f"{TENSOR}.scale", COUNT),
        (lambda d: tensor(d).update(scale="1"), f"{TENSOR}.scale", "Input should be a valid number"),
        (lambda d: tensor(d).update(scale=math.nan), f"{TENSOR}.scale", "Input should be a finite number"),
        (lambda d: tensor(d).update(scale=math.inf), f"{TENSOR}.scale", "Input should be a finite number"),
        (
            lambda d: tensor(d)["codec"].update(settings={"group": 4.0}),
            f"{TENSOR}.codec.settings.group",
            "Input should be a valid integer",
        ),
        (
            lambda d: tensor(d)["crc32"].update(data="x"),
            f"{TENSOR}.crc32.data",
            "String should match pattern '^[0-9a-f]{8}$'",
        ),
    ],
)
def test_a_wrong_field_is_named(path: Path, change: Change, field: str, told: str) -> None:
    assert message(damage(path, change)) == f"its field '{field}' is wrong: {told}"


def test_a_scale_above_float32_is_refused(path: Path) -> None:
    damage(path, lambda document: tensor(document).update(scale=1e39))
    assert message(path).startswith(
        f"its field '{TENSOR}.scale' is wrong: Input should be less than or equal"
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.update(kept=22), "of shape [3, 7] and dtype F32 keeps 22 entries"),
        (lambda t: t.update(dtype="F31"), "of shape [3, 7] and dtype F31 keeps 5 entries"),
        (lambda t: t.update(shape=[0, 7]), "of shape [0, 7] and dtype F32 keeps 5 entries"),
    ],
)
def test_a_tensor_that_cannot_be_is_refused(path: Path, change: Change, told: str) -> None:
    damage(path, lambda document: change(tensor(document)))
    assert message(path) == f"tensor 'encoder.weight' {told}; its header is damaged"


@pytest.mark.parametrize(
    ("change", "odd"),
    [
        (lambda d: d["tensors"].pop("encoder.bias"), "encoder.bias/data"),
        (lambda d: d["tensors"].update(new=tensor(d)), "new/data"),
        (lambda d: d["extras"].pop("empty"), "extra/empty"),
        (lambda d: d["extras"].update(new=d["extras"]["empty"]), "extra/new"),
        (lambda d: tensor(d)["crc32"].update(mask="00000000"), "encoder.weight/mask"),
        (lambda d: tensor(d).update(crc32={}), "encoder.weight/data"),
    ],
)
def test_a_payload_in_only_one_header_is_refused(path: Path, change: Change, odd: str) -> None:
    damage(path, change)
    assert message(path) == f"payload '{odd}' stands in only one of its two headers; it is damaged"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.update(kept=4), "5 entries are marked as kept, expected 4"),
        (lambda t: t.update(shape=[3, 700]), "6 bytes, expected at least 66"),
        (lambda t: t.update(bits=4), "6 bytes, expected at least 7"),
        (lambda t: t.update(shape=[1 << 40, 1 << 40]), None),
        (
            lambda t: t.update(codec={"name": "bitmsk"}),
            f"no codec is named 'bitmsk'; did you mean 'bitmask'? (known: {', '.join(CODECS)}); "
            "a newer flexswitch may know it",
        ),
        (
            lambda t: t.update(codec={"name": "grouped-coo", "settings": {"group": 6}}),
            "codec grouped-coo does not take the settings {'group': 6}: group 6, expected one of "
            "(4, 8, 16, 32, 64, 128, 256)",
        ),
    ],
)
def test_a_lie_about_a_tensor_is_told_with_its_name(path: Path, change: Change, told: str | None) -> None:
    damage(path, lambda document: change(tensor(document)))
    with pytest.raises(DecodeError) as caught:
        open_artifact(path).sparse("encoder.weight")
    assert str(caught.value).startswith(f"{path}: tensor 'encoder.weight': {told or ''}")
    assert told is None or str(caught.value).endswith(told)


# FORMAT.md


def test_the_worked_example_has_the_document_that_is_written(tmp_path: Path) -> None:
    found = re.search(r"```json\n(\{\"format\": *\"flexswitch-artifact\".*?)```", FORMAT, re.DOTALL)
    assert found is not None
    wanted = json.loads(found.group(1))
    sparse, scale, codec = TENSORS["encoder.weight"]
    written = header(
        base=BaseIdentity.model_validate(wanted["base"]),
        method=MethodRecord.model_validate(wanted["method"]),
        parameters=wanted["parameters"],
    )
    path = write_artifact(tmp_path / "sst2.fsw", {"encoder.weight": (sparse, scale, codec)}, {}, written)
    with safe_open(path, framework="np") as opened:
        assert opened.metadata()[METADATA_KEY] == json.dumps(wanted, separators=(",", ":"))
        assert f"`{opened.metadata()[CHECKSUM_KEY]}`" in FORMAT


@pytest.mark.parametrize(
    "record",
    [
        ArtifactHeader, BaseIdentity, ModelRecord, MethodRecord, CodecRecord, TensorRecord,
        ZooRecord, TaskRecord, IndexRecord, TaskVectorHeader, QuerySetHeader,
    ],
)  # fmt: skip
def test_the_format_page_names_every_field(record: type[BaseModel]) -> None:
    assert [field for field in record.model_fields if f"`{field}`" not in FORMAT] == []


def test_the_base_of_these_tests_is_a_valid_one() -> None:
    assert BaseIdentity.model_validate(BASE.model_dump()) == BASE
