"""Parts of a file are read alone, by any number of threads."""

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from flexswitch.codecs.errors import ArtifactError, FlexswitchError, InputError
from flexswitch.codecs.format.safetensors_file import RangeReader

DATA = bytes(range(256)) * 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def descriptors(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The descriptors that are open now of those opened during the test."""
    found: set[int] = set()
    really_open, really_close = os.open, os.close

    def opening(path: Path, flags: int) -> int:
        descriptor = really_open(path, flags)
        found.add(descriptor)
        return descriptor

    def closing(descriptor: int) -> None:
        found.discard(descriptor)
        really_close(descriptor)

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "close", closing)
    return found


def test_any_part_of_a_file_is_read_alone(path: Path) -> None:
    reader = RangeReader(path, InputError)
    for offset, size in [(0, len(DATA)), (0, 1), (7, 300), (len(DATA) - 1, 1), (5, 0), (len(DATA), 0)]:
        found = reader.read(offset, size)
        assert found.dtype == np.uint8
        assert found.tobytes() == DATA[offset : offset + size]


def test_what_is_read_is_the_callers_own(path: Path) -> None:
    reader = RangeReader(path, InputError)
    found = reader.read(0, 4)
    found[:] = 9
    assert reader.read(0, 4).tolist() == [0, 1, 2, 3]
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_a_part_that_is_read_in_pieces_is_complete(path: Path, chunk: int) -> None:
    assert RangeReader(path, InputError, read_bytes=chunk).read(3, 1000).tobytes() == DATA[3:1003]


@pytest.mark.parametrize("error", [ArtifactError, InputError])
def test_reading_behind_the_end_is_refused(path: Path, error: type[FlexswitchError]) -> None:
    reader = RangeReader(path, error)
    for offset, size in [(len(DATA) - 2, 3), (0, 100_000), (len(DATA) + 5, 1)]:
        with pytest.raises(error) as caught:
            reader.read(offset, size)
        end = max(offset, len(DATA))
        assert str(caught.value) == f"{path}: ends at byte {end:,}, expected {offset + size:,}"


def test_a_file_that_becomes_shorter_is_reported(path: Path) -> None:
    reader = RangeReader(path, InputError)
    reader.read(0, 10)
    path.write_bytes(DATA[:5])
    with pytest.raises(InputError) as caught:
        reader.read(0, 1000)
    assert str(caught.value) == f"{path}: ends at byte 5, expected 1,000"
    path.write_bytes(DATA)
    assert reader.read(0, 1000).tobytes() == DATA[:1000]


def test_nothing_is_opened_before_it_is_read(tmp_path: Path, path: Path, descriptors: set[int]) -> None:
    missing = RangeReader(tmp_path / "none", InputError)
    assert missing.read(0, 0).tolist() == []
    with pytest.raises(FileNotFoundError):
        missing.read(0, 1)
    reader = RangeReader(path, InputError)
    assert len(descriptors) == 0
    reader.read(0, 1)
    reader.read(5, 1)
    assert len(descriptors) == 1


def test_the_file_is_closed_with_its_reader(path: Path, descriptors: set[int]) -> None:
    readers = [RangeReader(path, InputError) for _ in range(5)]
    for reader in readers:
        reader.read(0, 1)
    assert len(descriptors) == 5
    del reader, readers
    gc.collect()
    assert len(descriptors) == 0


def test_threads_share_a_reader(path: Path, descriptors: set[int]) -> None:
    reader, barrier = RangeReader(path, InputError), threading.Barrier(8, timeout=20)

    def work(seed: int) -> None:
        barrier.wait()
        generator = np.random.default_rng(seed)
        for _ in range(200):
            offset = int(generator.integers(len(DATA)))
            size = int(generator.integers(len(DATA) - offset + 1))
            assert reader.read(offset, size).tobytes() == DATA[offset : offset + size]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert 1 <= len(descriptors) <= 8  # two threads may open it at once


def test_reading_ahead_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = RangeReader(path, InputError)
    reader.read_ahead(0, len(DATA))
    reader.read_ahead(len(DATA), 100)
    assert reader.read(0, len(DATA)).tobytes() == DATA
    monkeypatch.delattr(os, "posix_fadvise", raising=False)  # as on a Mac
    reader.read_ahead(0, len(DATA))
    assert reader.read(4, 4).tobytes() == DATA[4:8]
