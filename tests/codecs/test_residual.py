"""`residual`: numbers come back bit for bit, as FORMAT.md describes, and damage is noticed or harmless."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.laws import settings

from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.residual import NUMBER_KINDS, NumberKind, Residual
from flexswitch.codecs.scaled_numbers import scaled
from flexswitch.codecs.zstd import zstd_decompress

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "residual.bin"
Numbers = NDArray[np.unsignedinteger]
Pair = Callable[[str], tuple[Numbers, Numbers]]


def block(dtype: str, count: int = 300, seed: int = 0) -> tuple[Numbers, Numbers]:
    """Returns a base and numbers of which some moved a little, some far, and some to anything."""
    kind, draw = NUMBER_KINDS[dtype], np.random.default_rng(seed)
    base = draw.integers(0, 256, count * kind.width // 8, np.uint8).view(kind.dtype)
    if kind.mantissa:
        top = (1 << kind.width - 2) >> kind.mantissa << kind.mantissa
        base = base & kind.dtype.type(1 << kind.width - 1 | (8 << kind.mantissa) - 1) | kind.dtype.type(top)
    found = base.copy()
    near, far = draw.random(count) < 0.6, draw.random(count) < 0.1
    found[near] += draw.integers(0, min(1 << kind.width - 3, 5000), near.sum()).astype(kind.dtype)
    found[far] = draw.integers(0, 256, int(far.sum()) * kind.width // 8, np.uint8).view(kind.dtype)
    return base, found


def decayed(dtype: str, count: int = 300) -> tuple[Numbers, Numbers]:
    """Returns a base and numbers of which most are the base's times 7/8."""
    kind, (base, found) = NUMBER_KINDS[dtype], block(dtype, count)
    most = np.random.default_rng(2).random(count) < 0.8
    if not kind.mantissa:
        return base, np.where(most, base, found)
    times = [plain_times(int(number), -(1 << 21), kind) for number in base]
    return base, np.where(most, np.array(times, np.uint64).astype(kind.dtype), found)


def plain_times(number: int, factor: int, kind: NumberKind) -> int:
    """Returns a number times 1 + factor / 2^24, by fractions and as FORMAT.md says it."""
    m, sign = kind.mantissa, number >> kind.width - 1
    top = (1 << kind.width - 1 - m) - 1
    exponent, mantissa = number >> m & top, number & (1 << m) - 1
    if exponent in (0, top):
        return number
    value = Fraction(mantissa + (1 << m)) * (1 + Fraction(factor, 1 << 24))  # in units of 2^(exponent − m)
    moved = int(value >= 1 << m + 1) - int(value < 1 << m)
    digits = floor(value / Fraction(2) ** moved + Fraction(1, 2))
    carried = digits >> m + 1
    if exponent + moved + carried in (0, top):
        return number
    return sign << kind.width - 1 | exponent + moved + carried << m | (digits >> carried) - (1 << m)


def plain_decode(codec: Residual, data: bytes, base: Numbers, columns: int, kind: NumberKind) -> list[int]:
    """Returns the numbers of a stream, in Python's integers and as FORMAT.md says it."""
    width, m = kind.width, kind.mantissa
    if codec.factor:
        base = np.array([plain_times(int(x), codec.factor, kind) for x in base], np.uint64).astype(kind.dtype)
    frame, words_size = np.frombuffer(data[:8], "<u4").tolist()
    rows = (16 if codec.exponents else 1) * (64 if codec.activities else 1)
    octaves, wide = m or width, width == 64
    buckets = octaves if wide else 2 * octaves - 1
    symbols = 2 * buckets + 1 + (64 if m else 0)
    shares = np.frombuffer(zstd_decompress(data[8 : 8 + frame], 2 * rows * symbols), "<u2").reshape(rows, -1)
    rest = data[8 + frame :]
    states = np.frombuffer(rest[:32], "<u4").tolist()
    words = np.frombuffer(rest[32 : 32 + words_size], "<u2").tolist()
    raw = int.from_bytes(rest[32 + words_size :], "little")

    def take(count: int) -> int:
        nonlocal raw
        bits, raw = raw & (1 << count) - 1, raw >> count
        return bits

    size = (1 << width - 1) - 1
    exponents = [(int(x) & size) >> m if m else 0 for x in base]
    row, levels, found = codec.level, [codec.level] * columns, []
    for first in range(0, len(base), 8):
        group = range(first, min(first + 8, len(base)))
        expected = [(row + levels[index % columns]) // 2 for index in group]
        change = 0
        for index, wanted in zip(group, expected, strict=True):
            before, exponent = int(base[index]), exponents[index]
            activity = min(max((wanted - 32 * exponent) // 16 + 8, 0), 63)
            distance = min(max(exponents) - exponent, 15)
            context = (
                distance * codec.exponents * (64 if codec.activities else 1) + activity * codec.activities
            )
            state = states[index % 8]
            below = np.cumsum(shares[context].astype(int))
            symbol = int(np.searchsorted(below, state % 4096, side="right"))
            share = int(shares[context, symbol])
            state = share * (state // 4096) + state % 4096 - (int(below[symbol]) - share)
            states[index % 8] = state * 65536 + words.pop(0) if state < 65536 else state
            if symbol <= 2 * buckets:
                bucket = (symbol + 1) // 2
                octave = bucket - 1 if wide else bucket // 2
                spare = octave if wide else max(octave - 1, 0)
                head = (1 if wide else bucket - max(2 * octave - 2, 0)) if bucket else 0
                moved = head << spare | take(spare) if bucket else 0
                after = (before + moved if symbol % 2 else before - moved) % (1 << width)
                level = 32 * exponent + (32 if wide else 16) * bucket - (0 if bucket else 16)
            else:
                move, flips = divmod(symbol - 2 * buckets - 1, 2)
                low, goal = take(m), move + wanted // 32 - m - 12
                goal = take(width - 1 - m) if move in (0, 31) else goal
                after = ((before >> width - 1) ^ flips) << width - 1 | goal << m | low
                level = 32 * (max(exponent, goal) + m)
            found.append(after)
            if symbol or level <= wanted:
                change += level - row
                levels[index % columns] += (level - levels[index % columns]) // 8
        row += change // 32
    assert (words, raw, set(states)) == ([], 0, {65536})
    return found


@pytest.mark.parametrize("columns", [1, 7, 40])
@pytest.mark.parametrize("pair", [block, decayed])
@pytest.mark.parametrize("dtype", NUMBER_KINDS)
@pytest.mark.deep
def test_the_format_page_decodes_what_is_encoded(dtype: str, pair: Pair, columns: int) -> None:
    kind, (base, found) = NUMBER_KINDS[dtype], pair(dtype)
    codec, data = Residual.encoded(base, found, columns, kind)
    assert plain_decode(codec, data, base, columns, kind) == found.tolist()
    assert codec.decode(data, base, columns, kind).tolist() == found.tolist()


FLOATS = [dtype for dtype, kind in NUMBER_KINDS.items() if 0 < kind.mantissa <= 23]


@pytest.mark.parametrize("dtype", FLOATS)
def test_weights_that_only_decayed_take_next_to_nothing(dtype: str) -> None:
    kind, (base, found) = NUMBER_KINDS[dtype], decayed(dtype, 20_000)
    codec, data = Residual.encoded(base, found, 100, kind)
    assert codec.factor / (1 << 24) == pytest.approx(-1 / 8, abs=0.5**kind.mantissa / 8)
    without, more = Residual._encoded(base, found, 100, kind, 0)
    assert (without.factor, len(data) < len(more)) == (0, True)
    assert codec.decode(data, base, 100, kind).tolist() == found.tolist()


@settings(60)
@given(st.sampled_from(FLOATS), st.integers(-(1 << 23) + 1, (1 << 23) - 1), st.data())
def test_numbers_are_multiplied_as_the_format_page_says(dtype: str, factor: int, data: st.DataObject) -> None:
    kind = NUMBER_KINDS[dtype]
    numbers = data.draw(st.lists(st.integers(0, (1 << kind.width) - 1), min_size=1, max_size=40))
    expected = [plain_times(number, factor, kind) for number in numbers]
    found = scaled(np.array(numbers, np.uint64).astype(kind.dtype), factor, kind.width, kind.mantissa)
    assert found.tolist() == (expected if factor else numbers)


def test_a_factor_where_none_can_be_is_refused() -> None:
    kind, (base, found) = NUMBER_KINDS["I32"], block("I32")
    codec, data = Residual.encoded(base, found, 7, kind)
    with pytest.raises(DecodeError, match="a factor for numbers"):
        replace(codec, factor=5).decode(data, base, 7, kind)


@settings(60)
@given(st.sampled_from(sorted(NUMBER_KINDS)), st.integers(1, 70), st.integers(1, 9), st.data())
@pytest.mark.deep
def test_any_numbers_come_back(dtype: str, count: int, columns: int, data: st.DataObject) -> None:
    kind = NUMBER_KINDS[dtype]
    number = st.integers(0, (1 << kind.width) - 1) | st.sampled_from([0, 1, 1 << kind.width - 1])
    numbers = st.lists(number, min_size=count, max_size=count)
    base, found = (np.array(data.draw(numbers), np.uint64).astype(kind.dtype) for _ in range(2))
    codec, stored = Residual.encoded(base, found, columns, kind)
    assert codec.decode(stored, base, columns, kind).tolist() == found.tolist()


@pytest.mark.parametrize("dtype", ["BF16", "F32", "I64"])
def test_a_stream_that_is_cut_or_longer_is_refused(dtype: str) -> None:
    kind, (base, found) = NUMBER_KINDS[dtype], block(dtype, 40)
    codec, data = Residual.encoded(base, found, 8, kind)
    for wrong in [*(data[:size] for size in range(len(data))), data + b"\0"]:
        with pytest.raises(DecodeError):
            codec.decode(wrong, base, 8, kind)


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64", "U8"])
def test_no_damage_reads_beyond_the_data(dtype: str) -> None:
    kind, (base, found) = NUMBER_KINDS[dtype], block(dtype, 100)
    codec, data = Residual.encoded(base, found, 8, kind)
    draw = np.random.default_rng(1)
    for _ in range(400):
        damaged = bytearray(data)
        start = 8 + int.from_bytes(data[:4], "little")
        for place in draw.integers(start, len(data), 3):
            damaged[place] = draw.integers(256)
        try:
            assert len(codec.decode(bytes(damaged), base, 8, kind)) == len(found)
        except DecodeError:
            continue


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"exponents": 2}, {"activities": -1}, {"level": -1}, {"level": 1 << 20}):
        with pytest.raises(ValueError, match="expected flags of 0 or 1"):
            Residual(**wrong)
    for factor in (1 << 23, -(1 << 23)):
        with pytest.raises(ValueError, match="expected a factor above"):
            Residual(factor=factor)


@pytest.mark.deep
def test_the_golden_bytes_decode() -> None:
    stored = GOLDEN.read_bytes()
    for dtype, kind in NUMBER_KINDS.items():
        settings, size = np.frombuffer(stored[:16], "<i4"), int.from_bytes(stored[16:20], "little")
        base, found = (
            np.frombuffer(stored[20 + part * 40 * kind.width // 8 :], kind.dtype, 40) for part in (0, 1)
        )
        start = 20 + 2 * 40 * kind.width // 8
        codec = Residual(*settings.tolist())
        decoded = codec.decode(stored[start : start + size], base, 8, kind)
        assert decoded.tolist() == found.tolist(), dtype
        stored = stored[start + size :]
    assert not stored


def golden_bytes() -> bytes:
    """Returns for each dtype the settings, the size of the stream, the base, the numbers and the stream."""
    parts = []
    for dtype, kind in NUMBER_KINDS.items():
        base, found = decayed(dtype, 40) if dtype in FLOATS else block(dtype, 40)
        codec, data = Residual.encoded(base, found, 8, kind)
        numbers = [codec.exponents, codec.activities, codec.level, codec.factor, len(data)]
        parts += [np.array(numbers, "<i4").tobytes(), base.tobytes(), found.tobytes(), data]
    return b"".join(parts)
