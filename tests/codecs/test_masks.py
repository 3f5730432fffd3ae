"""Compiled passes over masks, gaps and signs, each against a plain twin."""

import heapq
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sparse_tensors import LAWS, sparse_tensor

from flexswitch.codecs.huffman import _code_bits, byte_counts, frame_bytes
from flexswitch.codecs.masks import (
    count_bits,
    mask_gaps,
    mask_of,
    mask_positions,
    positions_after_gaps,
    positions_after_steps,
)
from flexswitch.codecs.registry import get_codec
from flexswitch.codecs.row_patterns import assign_rows
from flexswitch.codecs.sparse import SparseStats
from flexswitch.codecs.zstd import zstd_compress

pytestmark = pytest.mark.usefixtures("passes")


@st.composite
def masks(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Packed masks of any density, and how many entries they have; some begin at an odd address."""
    entries, density = draw(st.integers(0, 700)), draw(st.sampled_from([0.0, 0.01, 0.2, 0.5, 1.0]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = np.packbits(generator.random(entries) < density, bitorder="little")
    before = draw(st.integers(0, 9))
    return np.concatenate([np.full(before, 255, np.uint8), mask])[before:], entries


def plain_positions(mask: np.ndarray, entries: int) -> list[int]:
    return [place for place in range(entries) if mask[place // 8] >> place % 8 & 1]


# Masks, positions and gaps


@LAWS
@given(made=masks())
def test_positions_and_gaps_are_those_of_the_set_bits(made: tuple[np.ndarray, int]) -> None:
    mask, entries = made
    mask.setflags(write=False)
    expected = plain_positions(mask, entries)
    found, gaps = mask_positions(mask, len(expected)), mask_gaps(mask, len(expected))
    assert count_bits(mask) == len(expected)
    assert (found.tolist(), found.dtype) == (expected, np.uint32)
    assert (gaps.dtype, len(gaps)) == (np.uint32, len(expected))
    assert gaps.tolist() == [place - last - 1 for last, place in zip([-1, *expected], expected, strict=False)]
    assert mask_of(found, entries).tobytes() == mask.tobytes()
    assert positions_after_gaps(gaps, entries).tolist() == expected


@pytest.mark.parametrize("before", range(9))
def test_bits_of_a_mask_at_any_address_are_counted(before: int) -> None:
    mask = np.full((1 << 16) + 9 + before, 255, np.uint8)[before:]
    assert count_bits(mask) == 8 * ((1 << 16) + 9)
    assert count_bits(mask[:0]) == 0
    assert mask_positions(mask, 8 * len(mask)).tolist() == list(range(8 * len(mask)))


def test_positions_reach_to_the_end_of_a_large_mask() -> None:
    mask = np.zeros((1 << 29) // 8, np.uint8)
    mask[-1] = 0x80
    assert mask_positions(mask, 1).tolist() == [(1 << 29) - 1]
    assert mask_gaps(mask, 1).tolist() == [(1 << 29) - 1]


@LAWS
@given(gaps=st.lists(st.integers(0, 40), max_size=30), entries=st.integers(0, 600))
def test_gaps_lead_to_positions_or_behind_the_last_entry(gaps: list[int], entries: int) -> None:
    expected = np.cumsum([gap + 1 for gap in gaps]).astype(int) - 1
    found = positions_after_gaps(np.array(gaps, np.uint32), entries)
    if len(gaps) and expected[-1] >= entries:
        assert found is None
    else:
        assert (found.tolist(), found.dtype) == (expected.tolist(), np.uint32)


def test_the_largest_gaps_lead_behind_the_last_entry() -> None:
    largest = np.full(5, (1 << 32) - 1, np.uint32)
    assert positions_after_gaps(largest, 1 << 20) is None
    assert positions_after_gaps(largest[:0], 0).tolist() == []


def plain_steps(steps: list[int], kept: int, entries: int) -> list[int] | None:
    found, place = [], 0
    for step in steps:
        place += step
        if step != 255:
            found.append(place)
            place += 1
    stops = bool(steps) and steps[-1] == 255
    return None if stops or len(found) != kept or any(each >= entries for each in found) else found


@LAWS
@given(
    steps=st.lists(st.sampled_from([0, 0, 1, 2, 7, 100, 254, 255, 255]), max_size=20),
    entries=st.integers(0, 3000),
    more=st.sampled_from([-1, 0, 0, 0, 0, 1]),
)
def test_steps_lead_to_positions_or_nowhere(steps: list[int], entries: int, more: int) -> None:
    kept = max(0, sum(step != 255 for step in steps) + more)
    found = positions_after_steps(np.array(steps, np.uint8), kept, entries)
    expected = plain_steps(steps, kept, entries)
    assert (None if found is None else found.tolist()) == expected
    assert found is None or found.dtype == np.uint32


@pytest.mark.parametrize(
    ("steps", "kept", "entries", "expected"),
    [
        ([], 0, 0, []),
        ([0], 1, 1, [0]),
        ([254], 1, 255, [254]),
        ([255, 0], 1, 256, [255]),
        ([255, 255, 3, 0], 2, 515, [513, 514]),
        ([255, 255, 3, 0], 2, 514, None),  # behind the last entry
        ([0], 0, 9, None),  # one more than was expected
        ([0], 2, 9, None),  # one less
        ([0, 255], 1, 999, None),  # stops on an escape
        ([255], 0, 999, None),
        ([], 1, 9, None),
    ],
)
def test_steps_of_255_go_on(steps: list[int], kept: int, entries: int, expected: list[int] | None) -> None:
    found = positions_after_steps(np.array(steps, np.uint8), kept, entries)
    assert (None if found is None else found.tolist()) == expected


# Sizes of frames


def plain_code_bits(counts: list[int]) -> int:
    """Returns the bits of Huffman's code, by merging the two lightest nodes until there is one."""
    nodes, bits = list(counts), 0
    heapq.heapify(nodes)
    while len(nodes) > 1:
        weight = heapq.heappop(nodes) + heapq.heappop(nodes)
        bits += weight
        heapq.heappush(nodes, weight)
    return bits


@LAWS
@given(counts=st.lists(st.one_of(st.integers(1, 9), st.integers(1, 1 << 20)), min_size=1, max_size=256))
def test_the_bits_are_those_of_huffmans_code(counts: list[int]) -> None:
    assert _code_bits(np.sort(np.array(counts, np.int64))) == plain_code_bits(counts)


@LAWS
@given(data=st.binary(max_size=300))
def test_bytes_are_counted(data: bytes) -> None:
    assert byte_counts(np.frombuffer(data, np.uint8)).tolist() == [data.count(byte) for byte in range(256)]


@pytest.mark.parametrize("size", [0, 1, 20, 63, 64, 500, 5000, 300_000])
@pytest.mark.parametrize("content", ["one byte", "any bytes", "few bytes"])
def test_the_size_of_a_frame_is_close(content: str, size: int) -> None:
    draw = random.Random(0)
    symbols = {"one byte": b"\7", "any bytes": bytes(range(256)), "few bytes": bytes(range(20))}[content]
    data = np.frombuffer(bytes(draw.choices(symbols, k=size)), np.uint8)
    found, expected = len(zstd_compress(data.tobytes())), frame_bytes(byte_counts(data), 0, 0)
    assert abs(found - expected) <= 0.02 * found + 64


@pytest.mark.parametrize(
    ("density", "codec"),
    [
        (0.5, "gaps-zstd"),
        (0.4, "gaps-zstd"),
        (0.3, "gaps-zstd"),
        (0.1, "bitmask-zstd"),
        (0.03, "bitmask-zstd"),
    ],
)
def test_where_zstandard_finds_chance_repeats_their_cost_is_foretold(density: float, codec: str) -> None:
    marked = np.random.default_rng(0).random((1024, 1024)) < density
    kept = np.flatnonzero(marked)
    sparse = sparse_tensor((1024, 1024), kept.tolist(), [0] * len(kept), 0)
    found = get_codec(codec)()
    size = len(found.encode(sparse))
    assert abs(found.estimate_bytes(SparseStats(sparse)) - size) <= 0.06 * size


# Patterns of signs


def planted(
    rows: int, columns: int, count: int, noise: float, density: float = 0.3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns places and signs of rows that follow one of `count` patterns or its opposite, and which."""
    generator = np.random.default_rng(rows + count)
    patterns = generator.choice([-1, 1], (count, columns))
    group, polarity = generator.integers(count, size=rows), generator.choice([-1, 1], rows)
    matrix = polarity[:, None] * patterns[group] * np.where(generator.random((rows, columns)) < noise, -1, 1)
    kept = generator.random((rows, columns)) < density
    return np.flatnonzero(kept).astype(np.uint32), matrix[kept].astype(np.int32), 2 * group + (polarity < 0)


@pytest.mark.parametrize(("count", "noise"), [(1, 0.0), (1, 0.2), (2, 0.1), (4, 0.0), (4, 0.1), (8, 0.05)])
def test_planted_patterns_are_found(count: int, noise: float) -> None:
    places, signs, expected = planted(200, 300, count, noise)
    found = assign_rows(200, 300, places, signs, count)
    assert (found.dtype, found.shape) == (np.int32, (200,))
    assert 0 <= found.min() <= found.max() < 2 * count
    # The patterns are found in any order, each maybe as its own opposite.
    pairs = {(int(a), int(b)) for a, b in zip(expected, found, strict=True)}
    assert len(pairs) == len(set(expected.tolist())) == len({b for _, b in pairs})
    assert len({(a // 2, b // 2) for a, b in pairs}) == count


@pytest.mark.parametrize("count", [1, 4, 16])
def test_each_row_takes_its_best_pattern_or_the_opposite_of_it(count: int) -> None:
    places, signs, _ = planted(60, 80, 3, 0.1)
    found = assign_rows(60, 80, places, signs, count)
    dense = np.zeros(60 * 80, np.int64)
    dense[places] = signs
    dense = dense.reshape(60, 80)
    turned = np.where(found % 2, -1, 1)[:, None] * dense
    votes = np.stack([turned[found // 2 == pattern].sum(axis=0) for pattern in range(count)])
    overlaps = dense @ np.where(votes >= 0, 1, -1).T  # (row, pattern)
    chosen = overlaps[np.arange(60), found // 2]
    assert (np.abs(chosen) >= 0.8 * np.abs(overlaps).max(axis=1)).mean() > 0.95
    assert (np.sign(chosen) == np.where(found % 2, -1, 1)).mean() > 0.95


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (4, 0), (30, 20)])
@pytest.mark.parametrize("count", [1, 2, 16])
def test_matrices_without_a_sign_have_patterns_too(shape: tuple[int, int], count: int) -> None:
    nothing = np.empty(0, np.uint32)
    found = assign_rows(*shape, nothing, nothing.astype(np.int32), count)
    assert found.tolist() == [0] * shape[0]


def test_one_sign_is_one_pattern() -> None:
    for sign in (1, -1):
        one = np.array([sign], np.int32)
        assert assign_rows(3, 5, np.array([7], np.uint32), one, 4).tolist() == [0, 0, 0]


def test_the_assignment_is_the_same_on_any_thread() -> None:
    places, signs, _ = planted(120, 90, 5, 0.2)
    places.setflags(write=False)
    signs.setflags(write=False)
    run: Callable[[int], list[int]] = lambda _: assign_rows(120, 90, places, signs, 4).tolist()  # noqa: E731
    expected = run(0)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(12))) == [expected] * 12


def test_no_rows_have_no_patterns() -> None:
    assert len(assign_rows(0, 4, np.zeros(0, np.uint32), np.zeros(0, np.int32), 4)) == 0
