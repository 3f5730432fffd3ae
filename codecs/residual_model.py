"""The model of `residual`: each number's difference from the base's, given its exponent and its neighbours.

A number is a symbol and some raw bits. Symbols are coded in contexts by rANS (J. Duda 2013, "Asymmetric
numeral systems", arXiv 1311.2540) with eight interleaved states, which a processor decodes side by side.
FORMAT.md describes the model step by step. All arithmetic is in integers.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled

Numbers = NDArray[Any]  # unsigned integers, the bit patterns of a block
Bytes = NDArray[Any]  # uint8
Words = NDArray[Any]  # uint16
Raw = NDArray[Any]  # uint32
Integers = NDArray[Any]  # int64

int64: Any = np.int64  # mypy's integers of NumPy do not mix with Python's, those of numba do

LANES = 8
SHARE_BITS = 12
WHOLE = 1 << SHARE_BITS
LOWEST_STATE = 1 << 16
EXPONENTS, ACTIVITIES = 16, 64  # classes, whose product is the number of contexts
MOVES = 32  # classes of the exponent of a number that moved far
_MOVE_ORIGIN = 12
_QUIET = 8  # the activity class of an expected difference of one unit
_OCTAVE = 5  # a doubling is 2^5 units of a level
_ROW_RATE, _COLUMN_RATE = 5, 3  # of the averages over a row, from eight numbers at once, and over a column
# What reading may overshoot before it is noticed: 80 bits and a word for each lane.
RAW_SPARE, WORD_SPARE = 24, LANES


@compiled
def mean_level(base: Numbers, found: Numbers, width: int, mantissa: int) -> int:
    """Returns the mean level of the numbers that differ from the base's, 0 if none does."""
    size = int64((np.uint64(1) << np.uint64(width - 1)) - np.uint64(1))  # all bits but the sign
    total, count = int64(0), int64(0)
    for index in range(base.size):
        if base[index] != found[index]:
            before, after = int64(base[index]), int64(found[index])
            distance = _moved(before, after, width, mantissa, size)
            scale = (before & size) >> mantissa if mantissa else int64(0)
            total += (scale + min(_octave(abs(distance)), int64(mantissa or width))) << _OCTAVE
            count += 1
    return total // count if count else 0


def model_block(
    base: Numbers, found: Numbers, columns: int, width: int, mantissa: int, halves: bool, start: int,
    contexts: Words, symbols: Bytes, raw: Raw,
) -> int:  # fmt: skip
    """Writes the context, the symbol and the raw bits of each number; returns the number of raw bits.

    width: bits of a number. mantissa: of a floating one, or 0. halves: two buckets per octave instead of one.
    start: the initial level.
    """
    position: int = _model(
        base, found, columns, width, mantissa, halves, start, contexts, symbols, raw,
        *_block_setting(base, columns, width, mantissa, halves, start),
    )  # fmt: skip
    return position


def _block_setting(
    base: Numbers, columns: int, width: int, mantissa: int, halves: bool, start: int
) -> tuple[int, int, int, Integers, Integers]:
    """Returns what the compiled passes would take half a second to compile.

    The pattern of all bits but the sign, the largest exponent of the base, the number of symbols of near
    numbers, the level of each column, and scratch of `LANES` numbers.
    """
    size, octaves = (1 << (width - 1)) - 1, mantissa or width
    top = int((base & base.dtype.type(size)).max(initial=0)) >> mantissa if mantissa else 0
    moves = 2 * (2 * octaves - 1 if halves else octaves) + 1
    return size, top, moves, np.full(columns, start, np.int64), np.zeros(LANES, np.int64)


@compiled
def _model(
    base: Numbers, found: Numbers, columns: int, width: int, mantissa: int, halves: bool, start: int,
    contexts: Words, symbols: Bytes, raw: Raw,
    size: int, top: int, moves: int, levels: Integers, expected: Integers,
) -> Any:  # fmt: skip
    """Does the work of `model_block`."""
    row, column, position = int64(start), 0, int64(0)
    for first in range(0, base.size, LANES):
        last, place, change = min(first + LANES, base.size), column, int64(0)
        for index in range(first, last):
            scale = (int64(base[index]) & size) >> mantissa if mantissa else int64(0)
            expected[index - first] = (row + levels[place]) >> 1
            contexts[index] = _context(top, scale, expected[index - first])
            place = place + 1 if place + 1 < columns else 0
        for index in range(first, last):
            before, after = int64(base[index]), int64(found[index])
            scale = (before & size) >> mantissa if mantissa else int64(0)
            moved, flipped = (
                _moved(before, after, width, mantissa, size),
                ((before ^ after) >> (width - 1)) & 1,
            )
            symbol, level = int64(0), (scale << _OCTAVE) - (1 << (_OCTAVE - 1))
            if mantissa and (flipped or abs(moved) >> mantissa):
                goal = (after & size) >> mantissa
                move = goal - _move_origin(expected[index - first], mantissa)
                move = min(max(move, 0), MOVES - 1)
                symbol, level = moves + 2 * move + flipped, (max(scale, goal) + mantissa) << _OCTAVE
                position = _put(raw, position, after, mantissa)
                if move in (0, MOVES - 1):
                    position = _put(raw, position, goal, width - 1 - mantissa)
            elif moved:
                distance = moved if moved > 0 else -moved  # −2^63 stays what it is
                octave = _octave(distance)
                spare = max(octave - 1, 0) if halves else octave
                bucket = max(2 * octave - 2, 0) + (distance >> spare) if halves else octave + 1
                symbol = 2 * bucket - (1 if moved > 0 else 0)
                level = (scale << _OCTAVE) + (bucket << (_OCTAVE - 1 if halves else _OCTAVE))
                position = _put(raw, position, distance, spare)
            symbols[index] = symbol
            if symbol or level <= expected[index - first]:
                change += level - row
                levels[column] += (level - levels[column]) >> _COLUMN_RATE
            column = column + 1 if column + 1 < columns else 0
        row += change >> _ROW_RATE
    return position


def decode_block(
    base: Numbers, found: Numbers, columns: int, width: int, mantissa: int, halves: bool, start: int,
    table: Integers, slots: Bytes, shares: Raw, spares: Integers, offsets: Integers, heights: Integers,
    states: Integers, words: Words, raw: Raw, raw_bits: int,
) -> int:  # fmt: skip
    """Writes the numbers of a block; returns how many raw bits were read, or −1 if the data are invalid.

    table: (context,) the row in `slots` and `shares`, or −1. slots: (row, 4096) the symbol of each 4096th.
    shares: (row, symbol) the share in 4096ths · 2^16 + the sum of the shares before it. spares, offsets,
    heights: (symbol,) number of raw bits, smallest distance and level. words ends in `WORD_SPARE` spare words
    and raw in `RAW_SPARE`.
    """
    read: int = _decode(
        base, found, columns, width, mantissa, start, table, slots, shares, spares, offsets, heights,
        states, words, raw, raw_bits, *_block_setting(base, columns, width, mantissa, halves, start),
        np.zeros(LANES, np.uint8),
    )  # fmt: skip
    return read


@compiled
def _decode(
    base: Numbers, found: Numbers, columns: int, width: int, mantissa: int, start: int,
    table: Integers, slots: Bytes, shares: Raw, spares: Integers, offsets: Integers, heights: Integers,
    states: Integers, words: Words, raw: Raw, raw_bits: int,
    size: int, top: int, moves: int, levels: Integers, expected: Integers, symbols: Bytes,
) -> int:  # fmt: skip
    """Does the work of `decode_block`; symbols: scratch."""
    row, column, position = int64(start), 0, int64(0)
    used, last_word = int64(0), words.size - WORD_SPARE
    for first in range(0, base.size, LANES):
        count, place, invalid = min(LANES, base.size - first), column, int64(0)
        for lane in range(count):
            scale = (int64(base[first + lane]) & size) >> mantissa if mantissa else int64(0)
            wanted = (row + levels[place]) >> 1
            context = table[_context(top, scale, wanted)]
            invalid |= context
            state = states[lane]
            slot = state & (WHOLE - 1)
            symbol = slots[max(context, 0), slot]
            share = shares[max(context, 0), symbol]
            state = (share >> 16) * (state >> SHARE_BITS) + slot - (share & 0xFFFF)
            is_low = int64(state < LOWEST_STATE)
            states[lane] = state << (is_low << 4) | (int64(words[used]) & -is_low)
            used += is_low
            expected[lane], symbols[lane] = wanted, symbol
            place = place + 1 if place + 1 < columns else 0
        if invalid < 0:
            return -1
        change = int64(0)
        for lane in range(count):
            before, symbol = int64(base[first + lane]), int64(symbols[lane])
            scale = (before & size) >> mantissa if mantissa else int64(0)
            spare = spares[symbol]
            rest = _get(raw, position, spare)
            position += spare
            if symbol < moves:
                distance = offsets[symbol] + rest
                after = before + distance * (((symbol & 1) << 1) - 1)
                level = (scale << _OCTAVE) + heights[symbol]
            else:
                move, flipped = (symbol - moves) >> 1, (symbol - moves) & 1
                goal = move + _move_origin(expected[lane], mantissa)
                if move in (0, MOVES - 1):
                    goal = _get(raw, position, width - 1 - mantissa)
                    position += width - 1 - mantissa
                sign = ((before >> (width - 1)) ^ flipped) & 1
                after = sign << (width - 1) | (goal & (size >> mantissa)) << mantissa | rest
                level = (max(scale, goal) + mantissa) << _OCTAVE
            found[first + lane] = after
            tells = -int64((symbol != 0) | (level <= expected[lane]))
            change += (level - row) & tells
            levels[column] += ((level - levels[column]) >> _COLUMN_RATE) & tells
            column = column + 1 if column + 1 < columns else 0
        row += change >> _ROW_RATE
        if used > last_word or position > raw_bits:
            return -1
    return position if used == last_word else -1


@compiled
def encode_symbols(
    contexts: Words, symbols: Bytes, table: Integers, shares: Words, sums: Words, states: Integers, out: Words
) -> int:
    """Encodes symbols, the last one first, into the end of `out`; returns the start of the words."""
    start = out.size
    for index in range(symbols.size - 1, -1, -1):
        context, symbol, lane = table[contexts[index]], symbols[index], index % LANES
        share, state = int64(shares[context, symbol]), states[lane]
        if state >= share << (32 - SHARE_BITS):
            start -= 1
            out[start], state = state & 0xFFFF, state >> 16
        states[lane] = ((state // share) << SHARE_BITS) + state % share + sums[context, symbol]
    return start


@compiled
def count_symbols(contexts: Words, symbols: Bytes, counts: Integers) -> None:
    """Adds to counts (context, symbol)."""
    for index in range(symbols.size):
        counts[contexts[index], symbols[index]] += 1


@compiled
def _context(top: int, scale: int, expected: int) -> Any:
    activity = ((expected - (scale << _OCTAVE)) >> (_OCTAVE - 1)) + _QUIET
    return min(top - scale, EXPONENTS - 1) * ACTIVITIES + min(max(activity, 0), ACTIVITIES - 1)


@compiled
def _move_origin(expected: int, mantissa: int) -> Any:
    """Returns the exponent that class 0 of a far move stands for."""
    return (expected >> _OCTAVE) - mantissa - _MOVE_ORIGIN


@compiled
def _moved(before: int, after: int, width: int, mantissa: int, size: int) -> Any:
    """Returns by how much the magnitude of a floating number grew, or an integer, modulo 2^width."""
    if mantissa:
        return (after & size) - (before & size)
    return ((after - before) << (64 - width)) >> (64 - width)


@compiled
def _octave(distance: int) -> Any:
    """Returns ⌊log2⌋ of an unsigned number, 0 for 0."""
    rest, octave = np.uint64(distance), int64(0)
    for shift in (32, 16, 8, 4, 2, 1):
        if rest >> np.uint64(shift):
            rest >>= np.uint64(shift)
            octave += shift
    return octave


@compiled
def _put(raw: Raw, position: int, value: int, count: int) -> Any:
    """Appends the lowest `count` bits of a value; returns the position after them."""
    for done in range(0, count, 16):
        taken = min(16, count - done)
        bits = ((value >> done) & ((1 << taken) - 1)) << (position & 31)
        raw[position >> 5] |= bits & 0xFFFFFFFF
        raw[(position >> 5) + 1] |= bits >> 32
        position += taken
    return position


@compiled
def _get(raw: Raw, position: int, count: int) -> Any:
    """Returns the next `count` bits."""
    place, shift = position >> 5, position & 31
    if count <= 32:
        pair = int64(raw[place]) | int64(raw[place + 1]) << 32
        return (pair >> shift) & ((int64(1) << count) - 1)
    low = ((int64(raw[place]) | int64(raw[place + 1]) << 32) >> shift) & 0xFFFFFFFF
    high = ((int64(raw[place + 1]) | int64(raw[place + 2]) << 32) >> shift) & 0xFFFFFFFF
    return low | (high & ((int64(1) << (count - 32)) - 1)) << 32
