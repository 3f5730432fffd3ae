"""Artifacts of format version 1 are read as they ever were, and refused where they are damaged or lie."""

from pathlib import Path

import pytest
from support.artifact_files import (
    EXTRAS,
    GOLDEN,
    HEADER,
    TENSORS,
    Change,
    Document,
    assert_holds,
    damage,
    flip,
    message,
    read_all,
    split,
)
from support.sparse_tensors import assert_same, positions, write_artifact

from flexswitch.codecs.errors import ArtifactError, DecodeError, InputError
from flexswitch.codecs.format.artifact_writer import ArtifactWriter
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.records import crc32
from flexswitch.codecs.registry import CODECS

TENSOR = "tensors.encoder.weight"
COUNT = "Input should be greater than or equal to 0"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A copy of the golden file, which release 0.1.0 wrote."""
    path = tmp_path / "sst2.fsw"
    path.write_bytes((GOLDEN / "artifact.fsw").read_bytes())
    return path


def tensor(document: Document) -> Document:
    found: Document = document["tensors"]["encoder.weight"]
    return found


def test_the_golden_artifact_of_version_1_is_read(path: Path, tmp_path: Path) -> None:
    artifact = open_artifact(path)
    assert_holds(artifact, TENSORS)
    assert (
        artifact.header == open_artifact(write_artifact(tmp_path / "2.fsw", TENSORS, EXTRAS, HEADER)).header
    )
    assert artifact.extra_bytes() == 24 + 16


def test_a_tensor_of_version_1_is_one_block(path: Path) -> None:
    artifact = open_artifact(path)
    for name, (sparse, _, _) in TENSORS.items():
        (block,) = artifact.header.tensors[name].blocks
        assert_same(artifact.block(name, 0), sparse)
        assert artifact.row_flags(name) is None
        ((start, places, levels),) = artifact.entries(name)
        assert (start, places.tolist(), levels.tolist()) == (0, positions(sparse), sparse.levels.tolist())
        assert len(artifact.packed(name).data) == block.size


def test_tensors_of_version_1_go_into_an_artifact_of_version_2_as_they_are(
    path: Path, tmp_path: Path
) -> None:
    artifact = open_artifact(path)
    with ArtifactWriter(tmp_path / "2.fsw", HEADER) as writer:
        for name in artifact.header.tensors:
            writer.add_tensor(name, artifact.packed(name))
    again = open_artifact(tmp_path / "2.fsw")
    assert again.header.tensors == artifact.header.tensors


def test_every_truncation_is_refused(path: Path) -> None:
    data = path.read_bytes()
    for length in [*range(0, len(data) - 60, 23), *range(len(data) - 60, len(data))]:
        path.write_bytes(data[:length])
        assert message(path)


def test_a_flipped_bit_of_the_header_is_refused_or_changes_nothing(path: Path) -> None:
    expected = open_artifact(path).header
    header_bits = 8 * (path.stat().st_size - len(split(path)[1]))
    for bit in [*range(64), *range(64, header_bits, 7)]:
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
    artifact, data = open_artifact(path), path.read_bytes()
    stored, payloads = split(path)
    for name in TENSORS:
        begin, end = stored[f"{name}/data"]["data_offsets"]
        good = payloads[begin:end]
        place = len(data) - len(payloads) + begin
        for bit in range(8 * len(good)):
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            flip(path, 8 * place + bit)
            with pytest.raises(DecodeError) as caught:
                artifact.sparse(name)
            assert str(caught.value) == (
                f"{path}: tensor '{name}', block 0, is damaged: its checksum is {crc32(bad)}, expected "
                f"{crc32(good)}; restore the file from a copy, or compress it again"
            )
            flip(path, 8 * place + bit)
    assert_holds(artifact, TENSORS)


def test_a_changed_document_fails_its_checksum(path: Path) -> None:
    damage(path, lambda document: document.update(parameters=1001), keep_checksum=True)
    assert message(path) == "its header is damaged: the checksum in 'flexswitch_crc32' does not fit"


@pytest.mark.parametrize(
    ("change", "field", "told"),
    [
        (lambda d: d.pop("name"), "name", "Field required"),
        (lambda d: d.update(table={}), "table", "Extra inputs are not permitted"),
        (lambda d: d.update(parameters=-1), "parameters", COUNT),
        (lambda d: tensor(d).update(shape=[3, -7]), f"{TENSOR}.shape.1", COUNT),
        (
            lambda d: tensor(d).update(shape=[1] * 65),
            f"{TENSOR}.shape",
            "List should have at most 64 items after validation, not 65",
        ),
        (lambda d: tensor(d).update(kept=-1), f"{TENSOR}.kept", COUNT),
        (lambda d: tensor(d).update(bits=3), f"{TENSOR}.bits", "Input should be 1, 2, 4, 8, 16 or 32"),
        (lambda d: tensor(d).update(scale=-0.5), f"{TENSOR}.scale", COUNT),
        (lambda d: tensor(d).update(blocks=[]), f"{TENSOR}.blocks", "Extra inputs are not permitted"),
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
        (lambda d: tensor(d)["crc32"].update(mask="00000000"), f"{TENSOR}.crc32.mask", "Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(path: Path, change: Change, field: str, told: str) -> None:
    assert message(damage(path, change)) == f"its field '{field}' is wrong: {told}"


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
    ],
)
def test_a_payload_in_only_one_header_is_refused(path: Path, change: Change, odd: str) -> None:
    damage(path, change)
    assert message(path) == f"payload '{odd}' stands in only one of its two headers; it is damaged"


def test_a_tensor_without_a_checksum_is_refused(path: Path) -> None:
    damage(path, lambda document: tensor(document).update(crc32={}))
    assert message(path).startswith(f"its field '{TENSOR}.crc32")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.update(kept=4), "5 entries are marked as kept, expected 4"),
        (lambda t: t.update(shape=[3, 700]), "6 bytes, expected at least 66"),
        (lambda t: t.update(bits=4), "6 bytes, expected at least 7"),
        (lambda t: t.update(shape=[1 << 40, 1 << 40]), f"6 bytes, expected at least {1 << 75}"),
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
def test_a_lie_about_a_tensor_is_told_with_its_name(path: Path, change: Change, told: str) -> None:
    damage(path, lambda document: change(tensor(document)))
    with pytest.raises(DecodeError) as caught:
        open_artifact(path).sparse("encoder.weight")
    assert str(caught.value) == f"{path}: tensor 'encoder.weight', block 0: {told}"
