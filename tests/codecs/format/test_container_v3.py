"""Artifacts of version 3: a zero point, or levels of 3, 5, 6 or 7 bits; others stay version 2, to the byte."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.artifact_files import (
    EXTRAS,
    GOLDEN,
    HEADER,
    ROWS,
    Change,
    Tensors,
    assert_holds,
    by_rows,
    damage,
    damage_table,
    message,
    read_table,
    split,
)
from support.sparse_tensors import assert_same, positions, sparse_tensor, write_artifact

from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.format.artifact_writer import ArtifactWriter, packed_tensor
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.records import METADATA_KEY
from flexswitch.codecs.registry import CODECS, stored_codec
from flexswitch.codecs.sparse import SparseTensor
from flexswitch.codecs.storage import store
from flexswitch.merging.task_vectors.task_vector import ArtifactVector, delta_tensor
from flexswitch.merging.zoos.pack import Form, create_zoo

MATRIX = sparse_tensor((3, 7), [1, 4, 5, 14, 20], [3, 0, 2, 1, 3], 3)
ROW = sparse_tensor((90, 2), [3, 10, 11], [0, 3, 1], 2)
TENSORS: Tensors = {
    "matrix": (MATRIX, 0.5, stored_codec("rice", {"remainder": 2})),
    "rows": (ROW, 0.25, by_rows(ROW, [1, 5], stored_codec("bitmask", {}))),
    "plain": ROWS["encoder.bias"],
}
ZEROS = {"matrix": 5, "rows": 2}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "sst2.fsw", TENSORS, EXTRAS, HEADER, ZEROS)


def version(path: Path) -> int:
    stored, _ = split(path)
    found: int = json.loads(stored["__metadata__"][METADATA_KEY])["version"]
    return found


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8, 16, 32])
@pytest.mark.parametrize("zero", [None, 0, 1, -7, (1 << 32) - 1])
def test_only_what_version_2_cannot_say_is_written_as_version_3(
    tmp_path: Path, bits: int, zero: int | None
) -> None:
    sparse = sparse_tensor((4,), [1], [1], bits)
    with ArtifactWriter(tmp_path / "a.fsw", HEADER) as writer:
        writer.add_tensor("w", packed_tensor(sparse, store(sparse), 1.0, "F32", zero))
    assert version(tmp_path / "a.fsw") == (2 if zero is None and bits in (1, 2, 4, 8, 16, 32) else 3)


def test_one_such_tensor_makes_the_file_version_3_and_the_others_have_no_zero_point(path: Path) -> None:
    assert version(path) == 3
    records = read_table(path)["tensors"]
    assert {name: record["zero"] for name, record in records.items() if "zero" in record} == ZEROS


def test_the_golden_artifact_of_version_3_is_read(path: Path) -> None:
    artifact, again = open_artifact(GOLDEN / "artifact3.fsw"), open_artifact(path)
    assert_holds(artifact, TENSORS)
    assert artifact.header == again.header
    for name in TENSORS:
        assert artifact.packed(name) == again.packed(name)


def dense(sparse: SparseTensor, scale: float, zero: int) -> np.ndarray:
    values = np.zeros(sparse.layout.entries, np.float32)
    values[positions(sparse)] = [scale * (level - zero) for level in sparse.levels.tolist()]
    return values.reshape(sparse.shape)


def test_kept_entries_are_steps_from_the_zero_point_and_all_others_zero(path: Path) -> None:
    vector = ArtifactVector(open_artifact(path))
    assert np.array_equal(delta_tensor(vector, "matrix").numpy(), dense(MATRIX, 0.5, 5))
    assert np.array_equal(delta_tensor(vector, "rows").numpy(), dense(ROW, 0.25, 2))


@pytest.mark.parametrize("codec", [*CODECS, "auto"])
def test_a_zoo_keeps_the_zero_point_in_any_form(tmp_path: Path, path: Path, codec: str) -> None:
    create_zoo(tmp_path / "zoo", [path], Form(codec, "small"), None, False, lambda name: None)
    packed = open_artifact(tmp_path / "zoo" / "tasks" / "sst2.fsw")
    assert version(packed.path) == 3
    for name, (sparse, scale, _) in TENSORS.items():
        record = packed.header.tensors[name]
        assert (record.scale, record.zero) == (scale, ZEROS.get(name))
        assert_same(packed.sparse(name), sparse)


# --- damage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zero", "told"),
    [
        ("1", "Input should be a valid integer"),
        (1.0, "Input should be a valid integer"),
        (True, "Input should be a valid integer"),
        (1 << 32, f"Input should be less than {1 << 32}"),
        (-(1 << 32), f"Input should be greater than {-(1 << 32)}"),
    ],
)
def test_a_zero_point_that_is_none_is_refused(path: Path, zero: object, told: str) -> None:
    damage_table(path, lambda table: table["matrix"].update(zero=zero))
    assert message(path) == f"its field 'tensors.matrix.zero' is wrong: {told}"


@pytest.mark.parametrize("bits", [16, 32])
def test_floating_levels_have_no_zero_point(path: Path, bits: int) -> None:
    damage_table(path, lambda table: table["rows"].update(bits=bits))
    told = f"tensor 'rows' has a zero point and levels of {bits} bits; its header is damaged"
    assert message(path) == told


@pytest.mark.parametrize(("name", "zero", "block"), [("matrix", 1, 0), ("rows", 3, 0)])
def test_a_kept_entry_at_the_zero_point_is_refused_by_every_reader(
    path: Path, name: str, zero: int, block: int
) -> None:
    damage_table(path, lambda table: table[name].update(zero=zero))
    artifact = open_artifact(path)
    for read in (
        artifact.sparse,
        artifact.check,
        lambda name: artifact.block(name, 0),
        lambda name: list(artifact.entries(name)),
    ):
        with pytest.raises(DecodeError) as caught:
            read(name)
        assert str(caught.value) == f"{path}: tensor '{name}', block {block}: a kept value is zero"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t["matrix"].pop("zero"), "'matrix' has levels of 3 bits and the zero point None"),
        (lambda t: t["matrix"].update(bits=4), "'matrix' has levels of 4 bits and the zero point 5"),
    ],
)
def test_a_file_of_version_2_has_neither(path: Path, change: Change, told: str) -> None:
    damage(damage_table(path, change), lambda document: document.update(version=2))
    assert message(path) == f"tensor {told}, which version 2 has not; its header is damaged"
