"""Small inputs, which numpy passes over: the same bits as from the compiled passes, and not for ever."""

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given
from support import laws
from support.sparse_tensors import FEW, codec_id, every_codec, sparse_tensors

from flexswitch.codecs import compiled
from flexswitch.codecs.blocks import spread
from flexswitch.codecs.codec import Codec, decoded_entries
from flexswitch.codecs.compiled import few
from flexswitch.codecs.sparse import SparseStats, SparseTensor
from flexswitch.codecs.storage import store

Made = TypeVar("Made")


def both(make: Callable[[], Made]) -> tuple[Made, Made]:
    """Returns what the compiled passes make and what numpy makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled.NUMPY, "left", 0)
        by_numba = make()
        patch.setattr(compiled.NUMPY, "left", math.inf)
        return by_numba, make()


@pytest.mark.parametrize("codec", every_codec(), ids=codec_id)
@laws.settings(8, FEW)
@given(sparse=sparse_tensors(largest=600))
def test_codecs_write_and_read_the_same(codec: Codec, sparse: SparseTensor) -> None:
    def coded() -> list[bytes | int]:
        data = codec.encode(sparse)
        found = codec.decode(data, sparse.layout)
        places, levels = decoded_entries(codec, data, sparse.layout)
        size = codec.estimate_bytes(SparseStats(sparse))
        assert (places.dtype, found.mask.dtype) == (np.uint32, np.uint8)
        return [data, size, found.mask.tobytes(), places.tobytes(), levels.tobytes()]

    by_numba, by_numpy = both(coded)
    assert by_numpy == by_numba


@FEW
@given(sparse=sparse_tensors())
def test_tensors_are_stored_in_the_same_blocks(sparse: SparseTensor) -> None:
    by_numba, by_numpy = both(lambda: store(sparse))
    assert by_numpy == by_numba


@pytest.mark.parametrize(("columns", "start"), [(1, 0), (3, 0), (3, 6), (7, 14)])
def test_positions_are_spread_to_the_same_places(columns: int, start: int) -> None:
    rows = np.array([0, 2, 3, 7, 11], np.int64)
    positions = np.arange(0, 5 * columns - start, 2, dtype=np.uint32)
    by_numba, by_numpy = both(lambda: spread(positions, start, rows, columns))
    assert (by_numpy.tolist(), by_numpy.dtype) == (by_numba.tolist(), np.int64)
    assert by_numpy.tolist() == [
        rows[(place + start) // columns] * columns + (place + start) % columns for place in positions.tolist()
    ]


def test_numpy_passes_over_few_entries_until_all_together_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.NUMPY, "left", 1 << 23)
    assert not few(1 << 20)
    answers = [few(1 << 18) for _ in range(40)]
    assert 20 < answers.count(True) < 40
    assert answers == sorted(answers, reverse=True)
    assert few(10)  # what is left
    monkeypatch.setattr(compiled.NUMPY, "left", 1 << 23)
    assert [few(0) for _ in range(10_000)].count(True) < 10_000
