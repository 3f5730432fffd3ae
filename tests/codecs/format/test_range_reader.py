"""Parts of a file are read from many threads, also where the system has no preadv."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.safetensors_file import RangeReader

CONTENT = np.random.default_rng(0).integers(0, 256, 50_000, dtype=np.uint8)


@pytest.fixture(params=["preadv", "portable"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file, on a system with and without what only some systems have."""
    if request.param == "portable":
        monkeypatch.delattr(os, "preadv")
        monkeypatch.delattr(os, "posix_fadvise")
    file = tmp_path / "data"
    file.write_bytes(CONTENT.tobytes())
    return file


@pytest.mark.parametrize("read_bytes", [1 << 30, 1000])
def test_many_threads_read_the_parts_that_they_ask_for(path: Path, read_bytes: int) -> None:
    reader, draw = RangeReader(path, InputError, read_bytes), np.random.default_rng(1)
    parts = [sorted(draw.integers(0, len(CONTENT) + 1, 2).tolist()) for _ in range(400)]
    reader.read_ahead(0, 100)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda part: reader.read(part[0], part[1] - part[0]), parts))
    for (start, stop), data in zip(parts, found, strict=True):
        assert np.array_equal(data, CONTENT[start:stop])


def test_the_end_of_the_file_is_named(path: Path) -> None:
    reader = RangeReader(path, InputError)
    with pytest.raises(InputError, match=r"data: ends at byte 50,000, expected 50,010$"):
        reader.read(49_990, 20)
