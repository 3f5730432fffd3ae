"""Damaged and inconsistent artifacts: each is refused with one line that says what is wrong."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.artifact_files import (
    EXTRAS,
    HEADER,
    ROWS,
    Change,
    assert_holds,
    damage,
    flip,
    message,
    read_all,
    rewrite,
    split,
    stored_form,
)
from support.sparse_tensors import write_artifact

from flexswitch.codecs.errors import ArtifactError, DecodeError, InputError
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.records import CHECKSUM_KEY, METADATA_KEY, crc32

RESTORE = "restore the file from a copy, or compress it again"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small artifact with a tensor of each sort."""
    return write_artifact(tmp_path / "sst2.fsw", ROWS, EXTRAS, HEADER)


# --- what is no artifact ----------------------------------------------------------------------------------


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    expected = "expected an artifact (.fsw) that `flexswitch compress` wrote"
    assert message(tmp_path / "none.fsw", InputError) == f"no such file; {expected}"
    assert message(tmp_path, InputError) == f"is a folder; {expected}"


def test_another_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"a": np.zeros(3)}, path, metadata)
        expected = "not a flexswitch artifact: its metadata lacks the key 'flexswitch'"
        assert message(path, InputError) == expected


def test_metadata_of_null_is_no_artifact(tmp_path: Path) -> None:
    path = rewrite(tmp_path / "a.fsw", {"__metadata__": None}, b"")
    assert message(path, InputError).startswith("not a flexswitch artifact: ")


def test_a_task_vector_file_is_refused(path: Path) -> None:
    damage(path, lambda document: document.update(format="flexswitch-task-vector"))
    expected = "its format is flexswitch-task-vector, expected flexswitch-artifact"
    assert message(path, InputError) == expected


# --- flipped bits, and files cut short --------------------------------------------------------------------


def test_every_truncation_is_refused(path: Path) -> None:
    data = path.read_bytes()
    for length in [*range(0, len(data) - 100, 23), *range(len(data) - 100, len(data))]:
        path.write_bytes(data[:length])
        assert message(path)


def test_bytes_behind_the_end_are_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")
    assert message(path).startswith("not a valid safetensors file (")


def test_a_flipped_bit_of_the_header_is_refused_or_changes_nothing(path: Path) -> None:
    extras = {name: extra for name, extra in EXTRAS.items() if extra.data}
    write_artifact(path, ROWS, extras, HEADER)
    expected = open_artifact(path).header
    header_bits = 8 * (path.stat().st_size - len(split(path)[1]))
    for bit in [*range(64), *range(64, header_bits, 3)]:
        flip(path, bit)
        error_text = ""
        try:
            read_all(path)
        except (ArtifactError, InputError) as error:
            error_text = str(error)
        # A change without an error is one without effect, such as \u00DF for \u00df.
        assert error_text.startswith(f"{path}: ") if error_text else open_artifact(path).header == expected
        flip(path, bit)


def test_a_flipped_bit_of_a_payload_is_reported_with_its_name(path: Path) -> None:
    data, artifact = path.read_bytes(), open_artifact(path)
    artifact.hold()
    start = len(data) - len(split(path)[1])
    owners: list[tuple[str, Callable[[], object], bytes]] = []
    offset = start
    for name, extra in artifact.header.extras.items():
        content = data[offset : offset + extra.size]
        owners.append((f"extra '{name}'", lambda name=name: artifact.extra(name), content))  # type: ignore[misc]
        offset += extra.size
    for name, record in artifact.header.tensors.items():
        content = stored_form(artifact, name).data
        for number, block in enumerate(record.stored, -(record.rows is not None)):
            what = f"tensor '{name}', " + (f"block {number}," if number >= 0 else "row flags,")
            owners.append((what, lambda name=name: artifact.sparse(name), content[: block.size]))  # type: ignore[misc]
            content = content[block.size :]
    for what, read, content in owners:
        assert data[start : start + len(content)] == content
        for bit in range(8 * start, 8 * (start + len(content)), 3):
            flip(path, bit)
            bad = crc32(path.read_bytes()[start : start + len(content)])
            with pytest.raises(DecodeError) as caught:
                read()
            assert str(caught.value) == (
                f"{path}: {what} is damaged: its checksum is {bad}, expected {crc32(content)}; {RESTORE}"
            )
            flip(path, bit)
        start += len(content)
    assert_holds(artifact, ROWS)


def test_a_flipped_bit_of_the_table_is_refused(path: Path) -> None:
    total, (begin, end) = path.stat().st_size, split(path)[0]["table"]["data_offsets"]
    for bit in range(8 * (total - (end - begin)), 8 * total, 5):
        flip(path, bit)
        assert message(path) == "its table of tensors is damaged: its size or checksum does not fit"
        flip(path, bit)
    assert_holds(open_artifact(path), ROWS)


def test_a_file_cut_short_while_it_is_open_is_reported(path: Path) -> None:
    artifact, total = open_artifact(path), path.stat().st_size
    artifact.hold()
    table, stored = (split(path)[0][name]["data_offsets"] for name in ("table", "data"))
    end = total - (table[1] - table[0])
    path.write_bytes(path.read_bytes()[: end - 2])
    with pytest.raises(ArtifactError) as caught:
        artifact.sparse("words")
    assert str(caught.value) == f"{path}: ends at byte {end - 2:,}, expected {end:,}"
    path.write_bytes(path.read_bytes()[: end - (stored[1] - stored[0]) - 3])
    with pytest.raises(ArtifactError, match=r": ends at byte [\d,]+, expected [\d,]+$"):
        artifact.extra("pooler")


def test_a_file_that_took_the_place_of_the_opened_one_is_refused(path: Path, tmp_path: Path) -> None:
    opened, held = open_artifact(path), open_artifact(path)
    held.hold()
    expected = held.sparse("words")
    other = tmp_path / "other"
    other.write_bytes(path.read_bytes())
    other.replace(path)
    with pytest.raises(InputError) as caught:
        opened.sparse("words")
    assert str(caught.value) == f"{path}: was changed or replaced while it was read; run the command again"
    assert np.array_equal(held.sparse("words").levels, expected.levels)


# --- the document -----------------------------------------------------------------------------------------

CHECKSUM = "its header is damaged: the checksum in 'flexswitch_crc32' does not fit"


def test_a_changed_document_fails_its_checksum(path: Path) -> None:
    damage(path, lambda document: document.update(parameters=1001), keep_checksum=True)
    assert message(path) == CHECKSUM


def test_a_missing_checksum_is_refused(path: Path) -> None:
    stored, data = split(path)
    del stored["__metadata__"][CHECKSUM_KEY]
    assert message(rewrite(path, stored, data)) == CHECKSUM


@pytest.mark.parametrize("text", ["", "{", '{"version": NaN', "[" * 100_000])
def test_a_document_that_does_not_parse_is_refused(path: Path, text: str) -> None:
    rewrite(path, {"__metadata__": {METADATA_KEY: text, CHECKSUM_KEY: crc32(text.encode())}}, b"")
    assert message(path).startswith("its JSON document does not parse (")


@pytest.mark.parametrize(("text", "kind"), [("[]", "list"), ("7", "int"), ("null", "NoneType")])
def test_a_document_that_is_no_json_object_is_refused(path: Path, text: str, kind: str) -> None:
    rewrite(path, {"__metadata__": {METADATA_KEY: text, CHECKSUM_KEY: crc32(text.encode())}}, b"")
    assert message(path) == f"its JSON document is a {kind}, expected an object"


def test_a_newer_format_asks_for_a_newer_flexswitch(path: Path) -> None:
    damage(path, lambda document: document.update(version=2, unheard_of={}))
    assert message(path) == "has format version 2, this flexswitch reads 1; install a newer one"


COUNT = "Input should be greater than or equal to 0"
CRC = "String should match pattern '^[0-9a-f]{8}$'"
INTEGER = "Input should be a valid integer"


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        (lambda d: d.update(format=7), "format", "Input should be 'flexswitch-artifact'"),
        (lambda d: d.update(version=0), "version", "Input should be 1"),
        (lambda d: d.update(version=-1), "version", "Input should be 1"),
        (lambda d: d.pop("name"), "name", "Field required"),
        (lambda d: d.pop("table"), "table", "Field required"),
        (lambda d: d.update(name=7), "name", "Input should be a valid string"),
        (
            lambda d: d.update(name="../x"),
            "name",
            "expected letters, digits, '.', '_' and '-', a letter or digit first",
        ),
        (lambda d: d.update(colour="red"), "colour", "Extra inputs are not permitted"),
        (lambda d: d.update(tensors={}), "tensors", "Extra inputs are not permitted"),
        (
            lambda d: d["base"].update(fingerprint="AB" * 32),
            "base.fingerprint",
            "String should match pattern '^[0-9a-f]{64}$'",
        ),
        (lambda d: d.update(parameters=-1), "parameters", COUNT),
        (lambda d: d.update(parameters=1.5), "parameters", INTEGER),
        (lambda d: d.update(parameters=1 << 63), "parameters", f"Input should be less than {1 << 63}"),
        (lambda d: d["table"].update(size=-1), "table.size", COUNT),
        (lambda d: d["table"].update(crc32="ABCDEF01"), "table.crc32", CRC),
    ],
)
def test_a_wrong_field_is_named(path: Path, change: Change, field: str, expected: str) -> None:
    assert message(damage(path, change)) == f"its field '{field}' is wrong: {expected}"
