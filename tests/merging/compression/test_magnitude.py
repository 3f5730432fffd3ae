"""The compiled passes that find the largest entries, each against plain numpy."""

import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from support import laws
from support.sparse_tensors import LAWS

from flexswitch.codecs import masks, order_statistics
from flexswitch.codecs.masks import mask_words
from flexswitch.codecs.order_statistics import kept_count
from flexswitch.merging.compression import magnitude
from flexswitch.merging.compression.magnitude import kept_blocks

pytestmark = pytest.mark.usefixtures("passes")

Floats = NDArray[np.float32]

MANY = laws.settings(80, LAWS)
TINY = float(np.float32(1e-45))
INFINITY = np.float32(math.inf)
SPECIAL = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0000001, -1.0000001, 0.5, TINY, -TINY, 1e-38, 3e38, -3e38])
ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)
LENGTHS = st.integers(0, 70)
FLOATS = st.one_of(
    arrays(np.float32, LENGTHS, elements=elements, fill=st.nothing()) for elements in (SPECIAL, ANY)
)
LEAST = st.sampled_from([TINY, 1e-38, 0.5, 1.0, 1.0000001, 3e38, math.inf]).map(np.float32)


def both(name: str, module: ModuleType = magnitude) -> list[Callable[..., object]]:
    """Returns a kernel compiled and as plain Python, which checks every index."""
    compiled = getattr(module, name)
    return [compiled, compiled.py_func]


def patterns(values: Floats) -> NDArray[np.uint32]:
    return values.view(np.uint32)


def kept(values: Floats, least_positive: np.float32, least_negative: np.float32) -> NDArray[np.bool_]:
    return (values >= least_positive) | (values <= -least_negative)


@MANY
@given(values=FLOATS)
@example(values=np.array([], np.float32))
@example(values=np.array([0.0, -0.0] * 9, np.float32))
def test_entries_are_counted_by_their_upper_half_without_zeros(values: Floats) -> None:
    halves = patterns(values[values != 0]) >> 16
    expected = np.bincount(halves, minlength=1 << 16)
    zeros = np.bincount(patterns(values[values == 0]) >> 16, minlength=1 << 16)
    assert np.array_equal(order_statistics.upper_histogram([values]).reshape(-1), expected)
    for count in both("count_upper", order_statistics):
        counts = np.zeros(1 << 16, np.int64)
        count(patterns(values), counts)
        assert np.array_equal(counts, expected + zeros)


@MANY
@given(values=FLOATS, data=st.data())
def test_entries_of_two_bins_are_counted_by_their_lower_half(values: Floats, data: st.DataObject) -> None:
    halves = (patterns(values) >> 16).astype(np.int64)
    bins = [-1, 0, *(int(half) & 0x7FFF for half in halves)]
    positive, negative = (data.draw(st.sampled_from(bins)) for _ in range(2))
    lower = patterns(values) & 0xFFFF
    expected = [
        np.bincount(lower[halves == place], minlength=1 << 16)
        for place in (positive, negative + (1 << 15) if negative >= 0 else -1)
    ]
    for count in both("count_lower", order_statistics):
        counts = np.zeros((2, 1 << 16), np.int64)
        count(patterns(values), positive, negative, counts)
        assert np.array_equal(counts, expected)


@MANY
@given(values=FLOATS, least_positive=LEAST, least_negative=LEAST)
def test_entries_that_reach_a_threshold_are_marked_and_gathered(
    values: Floats, least_positive: np.float32, least_negative: np.float32
) -> None:
    marked = kept(values, least_positive, least_negative)
    mask, found = magnitude.reaching(values, float(least_positive), float(least_negative))
    assert np.array_equal(mask, np.packbits(marked, bitorder="little"))
    assert patterns(found).tolist() == patterns(values[marked]).tolist()


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # words wrap round in plain Python
@MANY
@given(values=FLOATS, data=st.data())
def test_marked_entries_are_gathered(values: Floats, data: st.DataObject) -> None:
    marked = data.draw(arrays(np.bool_, len(values)))
    words = mask_words(np.packbits(marked, bitorder="little"))
    for gather in both("_gather", masks):
        found = np.full(int(marked.sum()), 7, np.float32)
        gather(values, words, found)
        assert patterns(found).tolist() == patterns(values[marked]).tolist()


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@MANY
@given(values=FLOATS, data=st.data())
def test_values_that_are_not_left_are_removed_with_their_bits(values: Floats, data: st.DataObject) -> None:
    marked = data.draw(arrays(np.bool_, len(values)))
    content = values[marked]
    left = data.draw(arrays(np.bool_, len(content)))
    expected = marked.copy()
    expected[np.flatnonzero(marked)[~left]] = False
    for select in both("_select"):
        words, found = mask_words(np.packbits(marked, bitorder="little")).copy(), content.copy()
        assert select(words, found, left) == left.sum()
        assert patterns(found[: int(left.sum())]).tolist() == patterns(content[left]).tolist()
        assert np.array_equal(words, mask_words(np.packbits(expected, bitorder="little")))


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1000, 4099])
def test_every_kernel_accepts_any_length(length: int) -> None:
    values = np.random.default_rng(length).normal(size=length).astype(np.float32)
    marked = kept(values, np.float32(0.5), np.float32(1))
    mask, found = magnitude.reaching(values, 0.5, 1)
    assert np.array_equal(mask, np.packbits(marked, bitorder="little"))
    assert np.array_equal(found, values[marked])
    counts = np.zeros(1 << 16, np.int64)
    order_statistics.count_upper(patterns(values), counts)
    assert np.array_equal(counts, np.bincount(patterns(values) >> 16, minlength=1 << 16))


# --- the passes together ----------------------------------------------------------------------------------


def plain_thresholds(values: Floats, drop: float) -> list[np.float32]:
    """Returns the least magnitude kept of the positive and of the negative values, by sorting."""
    found = []
    for sign in (1, -1):
        side = np.sort(sign * values[sign * values > 0])[::-1]
        count = kept_count(drop, len(side))
        found.append(side[count - 1] if count else np.float32(np.inf))
    return found


@MANY
@given(values=FLOATS, drop=st.sampled_from([0.0, 0.3, 0.6, 0.97]), block=st.sampled_from([8, 24, 1 << 20]))
def test_the_kept_blocks_are_the_entries_at_the_thresholds(values: Floats, drop: float, block: int) -> None:
    def read() -> list[Floats]:
        return [values[start : start + block] for start in range(0, len(values), block)]

    least = plain_thresholds(values, drop)
    found = list(kept_blocks(read, drop))
    assert len(found) == len(read())
    for (mask, content, dropped), part in zip(found, read(), strict=True):
        marked = kept(part, least[0], least[1])
        assert np.array_equal(mask, np.packbits(marked, bitorder="little"))
        assert patterns(np.ascontiguousarray(content)).tolist() == patterns(part[marked]).tolist()
        assert dropped == pytest.approx(np.sum(part[~marked].astype(np.float64) ** 2), rel=1e-12)


@pytest.mark.parametrize("drop", [0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [1e-6, 1e-3, 1.0])
def test_values_of_one_bin_are_distinguished(drop: float, spread: float) -> None:
    generator = np.random.default_rng(7)
    values = (1 + spread * generator.random(5003)).astype(np.float32) * generator.choice([-1, 1], 5003)
    values = values.astype(np.float32)
    least = plain_thresholds(values, drop)
    ((mask, content, _),) = kept_blocks(lambda: [values], drop)
    marked = kept(values, least[0], least[1])
    assert np.array_equal(mask, np.packbits(marked, bitorder="little"))
    assert np.array_equal(content, values[marked])


@pytest.mark.parametrize(
    ("values", "drop", "expected"),
    [
        ([], 0.0, []),
        ([0.0, -0.0], 0.0, []),
        ([1.0, 2.0, 3.0], 0.5, [3.0]),
        ([-1.0, -2.0, -3.0, 5.0], 0.5, [-3.0]),
        ([TINY, -TINY, 0.0], 0.0, [TINY, -TINY]),
        ([2.0, 2.0, 2.0, 1.0], 0.5, [2.0, 2.0, 2.0]),
    ],
)
def test_a_side_that_keeps_nothing_is_left_out_and_ties_are_kept(
    values: list[float], drop: float, expected: list[float]
) -> None:
    ((_, content, _),) = kept_blocks(lambda: [np.array(values, np.float32)], drop)
    assert content.tolist() == expected


# --- guesses by a sample ----------------------------------------------------------------------------------

ENTRIES, PIECE = 1 << 16, 1 << 7


def pieces(values: Floats) -> Floats:
    """Returns a piece of each 2^11 entries, (32, 128)."""
    return values.reshape(-1, ENTRIES // 32)[:, :PIECE]


def normal(seed: int) -> Floats:
    return np.random.default_rng(seed).normal(size=ENTRIES).astype(np.float32)


def loud_rows() -> Floats:
    return (normal(1).reshape(64, -1) * np.geomspace(1e-3, 1, 64)[::-1, None]).reshape(-1).astype(np.float32)


def loud_at(columns: slice) -> Floats:
    """The pieces of the sample are columns 0 to 127 of 2,048."""
    values = normal(2).reshape(32, -1)
    values[:, columns] *= 30
    return values.reshape(-1)


@pytest.mark.parametrize("drop", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize(
    ("values", "missed"),
    [
        (normal(0), False),
        (np.abs(normal(0)), False),
        (normal(0) * (normal(3) > 1.5), False),
        (np.zeros(ENTRIES, np.float32), False),
        (np.repeat(np.float32(0.5), ENTRIES), False),
        (loud_rows(), False),
        (loud_at(slice(PIECE, None)), False),
        (loud_at(slice(PIECE)), True),
    ],
)
def test_a_sample_changes_only_how_often_the_delta_is_read(values: Floats, missed: bool, drop: float) -> None:
    readings = 0

    def read() -> list[Floats]:
        nonlocal readings
        readings += 1
        return [values[start : start + (1 << 12)].copy() for start in range(0, ENTRIES, 1 << 12)]

    without = list(kept_blocks(read, drop))
    readings = 0
    found = list(kept_blocks(read, drop, lambda: pieces(values)))
    assert readings == (3 if missed and drop else 1)
    for (mask, content, dropped), expected in zip(found, without, strict=True):
        assert np.array_equal(mask, expected.mask)
        assert np.array_equal(content, expected.values)
        assert dropped == pytest.approx(expected.dropped, rel=1e-12)


def test_hardly_more_entries_than_are_kept_reach_a_likely_edge() -> None:
    values = normal(5)
    edge = magnitude.likely_edge(pieces(values), 0.9)
    assert 0.1 < np.count_nonzero(values >= edge) / np.count_nonzero(values > 0) < 0.2
