"""Tensors as matrices, without their empty rows, in blocks: every pass against plain numpy."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import laws
from support.sparse_tensors import BITS, LAWS, assert_same, sparse_tensor

from flexswitch.codecs import blocks as blocks_module
from flexswitch.codecs.blocks import Grid, as_matrix, cut, full_rows, put_rows, take_rows
from flexswitch.codecs.sparse import LEVEL_DTYPES, MAX_BLOCK_ENTRIES, SparseTensor

pytestmark = pytest.mark.usefixtures("passes")

SMALL = laws.settings(60, LAWS, suppress_health_check=[HealthCheck.function_scoped_fixture])
Marked = NDArray[np.uint8]


def packed(marked: Marked) -> Marked:
    return np.packbits(marked, bitorder="little")


def matrix(marked: Marked, bits: int = 1) -> SparseTensor:
    """Returns the sparse tensor of marks (row, column), its levels a running number."""
    kept = int(marked.sum())
    levels = (np.arange(kept) % ((1 << bits) - 1 or 1) + (bits > 8)).astype(LEVEL_DTYPES[bits])
    return SparseTensor(marked.shape, packed(marked), levels, bits)


@st.composite
def matrices(draw: st.DrawFn, rows: int = 40, columns: int = 40) -> Marked:
    """Marks (row, column) of any density, some rows empty."""
    shape = draw(st.integers(0, rows)), draw(st.integers(0, columns))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    marked = generator.random(shape) < draw(st.sampled_from([0, 0.03, 0.3, 1]))
    marked[generator.random(shape[0]) < draw(st.sampled_from([0, 0.5, 0.9]))] = False
    return marked.astype(np.uint8)


# --- the grid ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((), Grid(1, 1)),
        ((7,), Grid(1, 7)),
        ((0,), Grid(1, 0)),
        ((1 << 40,), Grid(1, 1 << 40)),
        ((3, 5), Grid(3, 5)),
        ((3, 0), Grid(3, 0)),
        ((0, 3), Grid(0, 3)),
        ((3, 5, 7), Grid(3, 35)),
        ((2, 1 << 17), Grid(2, 1 << 17)),
        ((2, 3, 1 << 17), Grid(6, 1 << 17)),
        ((2, 2, 1 << 16), Grid(2, 1 << 17)),
        ((2, 3, 1 << 16), Grid(6, 1 << 16)),
        ((2, 3, 4, (1 << 17) + 1), Grid(24, (1 << 17) + 1)),
        ((5, (1 << 17) + 1), Grid(5, (1 << 17) + 1)),
    ],
)
def test_a_row_is_as_long_as_2_to_the_17_allows(shape: tuple[int, ...], grid: Grid) -> None:
    assert as_matrix(shape) == grid


@pytest.mark.parametrize(
    ("grid", "shapes"),
    [
        (Grid(0, 7), []),
        (Grid(7, 0), []),
        (Grid(1, 0), []),
        (Grid(1, 1), [(1, 1)]),
        (Grid(1, 1 << 17), [(1, 1 << 17)]),
        (Grid(9, 1 << 17), [(8, 1 << 17), (1, 1 << 17)]),
        (Grid(17, (1 << 17) - 1), [(8, (1 << 17) - 1), (8, (1 << 17) - 1), (1, (1 << 17) - 1)]),
        (Grid(1, 1 << 20), [(1, 1 << 20)]),
        (Grid(3, (1 << 19) + 1), [(1, 1 << 20), (1, (1 << 19) + 3)]),
        (Grid(1, (1 << 21) + 5), [(1, 1 << 20), (1, 1 << 20), (1, 5)]),
        (Grid((1 << 20) + 1, 1), [(1 << 20, 1), (1, 1)]),
        (Grid(300_000, 7), [(149_792, 7), (149_792, 7), (416, 7)]),
    ],
)
def test_a_matrix_is_cut_into_blocks_of_at_most_2_to_the_20_entries(
    grid: Grid, shapes: list[tuple[int, int]]
) -> None:
    assert grid.shapes() == shapes


@SMALL
@given(
    shape=st.lists(st.integers(0, 1 << 18), max_size=5).map(tuple)
    | st.lists(st.integers(0, 40), max_size=4).map(tuple)
)
def test_a_grid_has_the_entries_of_its_tensor_and_the_last_dimension_whole(shape: tuple[int, ...]) -> None:
    grid = as_matrix(shape)
    assert grid.rows * grid.columns == math.prod(shape)
    if len(shape) > 1:
        splits = [(math.prod(shape[:split]), math.prod(shape[split:])) for split in range(1, len(shape))]
        fitting = [place for place in splits if place[1] <= 1 << 17]
        assert (grid.rows, grid.columns) == (fitting or splits[-1:])[0]


@SMALL
@given(rows=st.integers(0, 5000), columns=st.integers(0, 1 << 18))
def test_blocks_cover_a_matrix_in_whole_bytes(rows: int, columns: int) -> None:
    shapes = Grid(rows, min(columns, 40_000_000 // max(1, rows))).shapes()
    columns = min(columns, 40_000_000 // max(1, rows))
    sizes = [math.prod(shape) for shape in shapes]
    assert sum(sizes) == rows * columns
    assert all(0 < size <= MAX_BLOCK_ENTRIES for size in sizes)
    assert all(size % 8 == 0 for size in sizes[:-1])
    if columns <= 1 << 17:
        assert all(shape[1] == columns for shape in shapes)
        assert len({shape[0] for shape in shapes[:-1]}) <= 1
        assert all(
            shape[0] % 8 == 0 and (shape[0] + 8) * columns > MAX_BLOCK_ENTRIES for shape in shapes[:-1]
        )
    else:
        assert all(shape == (1, MAX_BLOCK_ENTRIES) for shape in shapes[:-1])


# --- cutting ----------------------------------------------------------------------------------------------


@SMALL
@given(marked=matrices(), bits=st.sampled_from(BITS))
def test_blocks_end_to_end_are_the_matrix(marked: Marked, bits: int) -> None:
    sparse, grid = matrix(marked, bits), Grid(*marked.shape, block_entries=64)
    parts = list(cut(sparse, grid))
    assert [part.shape for part in parts] == grid.shapes()
    flat = [np.unpackbits(part.mask, count=math.prod(part.shape), bitorder="little") for part in parts]
    assert np.array_equal(np.concatenate([np.empty(0, np.uint8), *flat]), marked.reshape(-1))
    levels = [part.levels for part in parts]
    assert np.array_equal(np.concatenate([sparse.levels[:0], *levels]), sparse.levels)
    assert all(np.shares_memory(part.mask, sparse.mask) for part in parts)
    assert all(np.shares_memory(part.levels, sparse.levels) for part in parts if len(part.levels))


def test_a_matrix_of_one_block_is_that_block() -> None:
    sparse = sparse_tensor((3, 5), [2, 14], [1, 0], 1)
    (part,) = cut(sparse, as_matrix(sparse.shape))
    assert_same(part, sparse)


# --- rows -------------------------------------------------------------------------------------------------


def saves(marked: Marked) -> bool:
    """Returns whether leaving out the empty rows saves bits, by the entropies of masks and flags."""

    def entropy(kept: int, entries: int) -> float:
        share = kept / max(1, entries)
        return (
            0
            if share in (0, 1)
            else -entries * (share * math.log2(share) + (1 - share) * math.log2(1 - share))
        )

    kept, full = int(marked.sum()), int(marked.any(axis=1).sum())
    saved = entropy(kept, marked.size) - entropy(kept, full * marked.shape[1])
    return saved > entropy(full, len(marked)) + 256


@SMALL
@given(marked=matrices(rows=120, columns=90))
def test_the_rows_that_keep_anything_are_flagged_where_that_saves(marked: Marked) -> None:
    flags = full_rows(matrix(marked), Grid(*marked.shape))
    if len(marked) < 2 or not marked.any() or not saves(marked):
        assert flags is None
    else:
        assert flags is not None
        assert flags.dtype == np.bool_
        assert np.array_equal(flags, marked.any(axis=1))


@pytest.mark.parametrize("columns", [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 64, 65, 1000])
@pytest.mark.parametrize("density", [0.001, 0.05, 0.5, 1.0])
def test_every_row_of_any_width_is_reported_full_or_empty(columns: int, density: float) -> None:
    marked = (np.random.default_rng(columns).random((200, columns)) < density).astype(np.uint8)
    marked[::3] = 0
    marked[199] = 0
    marked[5, columns - 1] = marked[198, 0] = 1
    flags = np.zeros(200, np.bool_)
    blocks_module._flag_rows(packed(marked), columns, flags)
    assert np.array_equal(flags, marked.any(axis=1))


def test_a_matrix_of_one_row_or_of_too_many_has_no_flags() -> None:
    marked = np.zeros((1, 3000), np.uint8)
    marked[0, :9] = 1
    assert full_rows(matrix(marked), Grid(1, 3000)) is None
    tall = np.zeros((MAX_BLOCK_ENTRIES + 1, 1), np.uint8)
    tall[: MAX_BLOCK_ENTRIES // 2] = 1
    assert full_rows(matrix(tall), Grid(MAX_BLOCK_ENTRIES + 1, 1)) is None


@SMALL
@given(marked=matrices(), data=st.data())
def test_rows_are_taken_and_put_back(marked: Marked, data: st.DataObject) -> None:
    rows, columns = marked.shape
    flags = np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), np.bool_)
    taken = take_rows(packed(marked), columns, flags)
    assert np.array_equal(taken, packed(marked[flags]))
    put = put_rows(taken, columns, flags)
    assert np.array_equal(put, packed(np.where(flags[:, None], marked, 0)))
    assert np.array_equal(take_rows(put, columns, flags), taken)


@SMALL
@given(marked=matrices())
def test_the_rows_that_keep_anything_are_all_there_is(marked: Marked) -> None:
    flags, mask = marked.any(axis=1), packed(marked)
    columns = marked.shape[1]
    assert np.array_equal(put_rows(take_rows(mask, columns, flags), columns, flags), mask)


@laws.settings(25, SMALL)
@given(marked=matrices(rows=12, columns=20))
def test_the_passes_stay_inside_their_arrays(marked: Marked) -> None:
    rows, columns = marked.shape
    flags, found = marked.any(axis=1), np.zeros(rows, np.bool_)
    mask, places = packed(marked), np.flatnonzero(flags)
    # The plain functions check each index, which the compiled ones do not.
    blocks_module._flag_rows.py_func(mask, columns, found)  # type: ignore[attr-defined]
    assert np.array_equal(found, flags)
    taken, put = packed(np.zeros((len(places), columns), np.uint8)), np.zeros_like(mask)
    blocks_module._move_rows.py_func(mask, places, columns, taken, False)  # type: ignore[attr-defined]
    assert np.array_equal(taken, packed(marked[flags]))
    blocks_module._move_rows.py_func(taken, places, columns, put, True)  # type: ignore[attr-defined]
    assert np.array_equal(put, mask)
