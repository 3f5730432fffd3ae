"""The blocks of an `.fsw` file: each is read alone, and damage to one stays there."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.artifact_files import EXTRAS, HEADER, ROWS, stored_form
from support.sparse_tensors import assert_same, write_artifact

from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.records import (
    crc32,
)
from flexswitch.codecs.sparse import SparseTensor
from flexswitch.codecs.storage import store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small artifact with a tensor of each sort."""
    return write_artifact(tmp_path / "sst2.fsw", ROWS, EXTRAS, HEADER)


CutUp = Callable[..., tuple[Path, SparseTensor]]


@pytest.fixture
def cut_up(tmp_path: Path) -> CutUp:
    """Writes `rows` rows of which half the entries are kept, with empty rows between; 2^20 entries a block."""

    def write(
        codec: str, rows: int = 20, spread: int = 1, columns: int = 1 << 17
    ) -> tuple[Path, SparseTensor]:
        generator = np.random.default_rng(0)
        marked = np.zeros((rows * spread, columns), np.uint8)
        marked[::spread] = generator.random((rows, columns), np.float32) < 0.5
        signs = generator.integers(0, 2, int(marked.sum()), np.uint8)
        sparse = SparseTensor(marked.shape, np.packbits(marked, bitorder="little"), signs, 1)
        return write_artifact(tmp_path / "a.fsw", {"w": (sparse, 0.5, store(sparse, codec))}), sparse

    return write


def rows_of(sparse: SparseTensor) -> np.ndarray:
    return np.unpackbits(sparse.mask, count=math.prod(sparse.shape), bitorder="little").reshape(sparse.shape)


@pytest.mark.parametrize("codec", ["bitmask", "raw", "auto"])
def test_a_block_is_read_alone(cut_up: CutUp, codec: str) -> None:
    path, sparse = cut_up(codec)
    record = open_artifact(path).header.tensors["w"]
    assert (record.rows, len(record.blocks)) == (None, 3)
    start, offset, used = 0, load_offset(path), 0
    whole, blocks = path.read_bytes(), slice(offset, offset + record.size)
    for index, block in enumerate(record.blocks):
        data = bytearray(whole)
        data[blocks] = bytes(record.size)  # all other blocks are gone
        data[offset : offset + block.size] = whole[offset : offset + block.size]
        path.write_bytes(data)
        found = open_artifact(path).block("w", index)
        height = found.shape[0]
        assert np.array_equal(rows_of(found), rows_of(sparse)[start : start + height])
        assert np.array_equal(found.levels, sparse.levels[used : used + block.kept])
        start, offset, used = start + height, offset + block.size, used + block.kept
    assert (start, used) == (20, len(sparse.levels))


def load_offset(path: Path) -> int:
    """Returns where an artifact's blocks begin."""
    data = path.read_bytes()
    return data.index(load_file(path)["data"].tobytes())


def test_rows_that_keep_nothing_are_left_out(cut_up: CutUp) -> None:
    path, sparse = cut_up("bitmask", rows=20, spread=10)
    artifact = open_artifact(path)
    record, full = artifact.header.tensors["w"], rows_of(sparse).any(axis=1)
    assert record.rows is not None
    assert record.rows.kept == full.sum()
    assert record.stored == [record.rows, *record.blocks]
    assert record.size == len(stored_form(artifact, "w").data) == sum(block.size for block in record.stored)
    flags = artifact.row_flags("w")
    assert flags is not None
    assert np.array_equal(flags, full)
    stacked = [rows_of(artifact.block("w", index)) for index in range(len(record.blocks))]
    assert np.array_equal(np.concatenate(stacked), rows_of(sparse)[full])
    assert_same(artifact.sparse("w"), sparse)


@pytest.mark.parametrize(
    ("codec", "rows", "spread", "columns"),
    [
        ("auto", 1_200_000, 1, 1),
        ("auto", 160_000, 5, 7),
        ("raw", 40_000, 1, 30),
        ("raw", 10_000, 10, 300),
        ("context", 1_200, 1, 1000),
        ("context", 10, 10, 1 << 17),
        ("auto", 9, 1, (1 << 17) + 1),
        ("raw", 9, 3, (1 << 17) + 1),
        ("auto", 3, 3, 600_001),
    ],
)
def test_kept_entries_are_read_block_by_block(
    cut_up: CutUp, codec: str, rows: int, spread: int, columns: int
) -> None:
    path, sparse = cut_up(codec, rows, spread, columns)
    artifact = open_artifact(path)
    found = list(artifact.entries("w"))
    assert len(found) == len(artifact.header.tensors["w"].blocks) > 1
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
    artifact = open_artifact(path)
    bad, good = crc32(data[offset : offset + blocks[1].size]), blocks[1].crc32
    expected = (
        f"{path}: tensor 'w', block 1, is damaged: its checksum is {bad}, expected {good}; "
        "restore the file from a copy, or compress it again"
    )
    reads = (artifact.sparse, artifact.check, lambda name: artifact.block(name, 1))
    for read in (*reads, lambda name: list(artifact.entries(name))):
        with pytest.raises(DecodeError) as caught:
            read("w")
        assert str(caught.value) == expected
    assert np.array_equal(rows_of(artifact.block("w", 0)), rows_of(sparse)[:8])
    assert np.array_equal(rows_of(artifact.block("w", 2)), rows_of(sparse)[16:])
