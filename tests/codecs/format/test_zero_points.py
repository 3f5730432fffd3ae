"""Tensors with a zero point: what is written is read, and inconsistencies are refused."""

from pathlib import Path

import numpy as np
import pytest
from support.artifact_files import (
    EXTRAS,
    HEADER,
    ROWS,
    Tensors,
    by_rows,
    damage_table,
    message,
    read_table,
)
from support.sparse_tensors import assert_same, positions, sparse_tensor, write_artifact

from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.registry import CODECS, stored_codec
from flexswitch.codecs.sparse import SparseTensor
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.task_vector import delta_tensor
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


def test_only_tensors_with_a_zero_point_record_one(path: Path) -> None:
    records = read_table(path)["tensors"]
    assert {name: record["zero"] for name, record in records.items() if "zero" in record} == ZEROS


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
    zoo, _ = create_zoo(tmp_path / "zoo", [path], Form(codec, "small"), None, False, lambda name: None)
    packed = zoo["sst2"]
    for name, (sparse, scale, _) in TENSORS.items():
        record = packed.header.tensors[name]
        assert (record.scale, record.zero) == (scale, ZEROS.get(name))
        assert_same(packed.sparse(name), sparse)


# --- damage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        ("1", "Input should be a valid integer"),
        (1.0, "Input should be a valid integer"),
        (True, "Input should be a valid integer"),
        (1 << 32, f"Input should be less than {1 << 32}"),
        (-(1 << 32), f"Input should be greater than {-(1 << 32)}"),
    ],
)
def test_a_zero_point_that_is_none_is_refused(path: Path, zero: object, expected: str) -> None:
    damage_table(path, lambda table: table["matrix"].update(zero=zero))
    assert message(path) == f"its field 'tensors.matrix.zero' is wrong: {expected}"


@pytest.mark.parametrize("bits", [16, 32])
def test_floating_levels_have_no_zero_point(path: Path, bits: int) -> None:
    damage_table(path, lambda table: table["rows"].update(bits=bits))
    expected = f"tensor 'rows' has a zero point and levels of {bits} bits; its header is damaged"
    assert message(path) == expected


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
