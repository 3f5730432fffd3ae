"""The model of `context`: the probability of each bit of a sparse matrix, given the earlier rows.

The bits of a row come in runs whose contexts are known before the run, so that one pass can both encode and
decode: it records the runs for the range coder or reads them from it. FORMAT.md describes the model step by
step. Arithmetic uses integers, or single float32 operations in a fixed order, and is the same on any machine.

The coder is rANS (J. Duda 2013, "Asymmetric numeral systems", arXiv 1311.2540) on bits, with a state of 40
bits that is renormalised by 16 bits. Probabilities are those of a set bit, in units of 2^-28; the coder uses
their upper 15 bits.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled
from flexswitch.codecs.sparse import FloatArray

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]
Symbols = NDArray[np.uint16]

CHANCE_BITS = 28
_CODED_BITS = 15
_WHOLE = 1 << _CODED_BITS
LOWEST_STATE = 1 << 24
STATE_BITS = 40
_MOST_SEEN = 510
# The n-th update of a context moves it by 1 / (n + 2) of the distance, and by 1 / 512 from the 510th on.
_RATES = (1 << 16) // (np.arange(_MOST_SEEN + 1, dtype=np.int64) + 2)

MOST_PATTERNS = 16
_CLASS_BITS = 6
_ONE = 127 << 23  # the bit pattern of the float32 1
_DENSITIES = 64  # contexts of the mask: four per octave of the expected density
_LOWEST_DENSITY = (127 - 14) << 2  # the bit pattern of 2^-14 without its lower 21 bits
_SIGN_VOTES = 32  # contexts of a sign: how decided the vote of its column is
_MAGNITUDES = 128  # contexts of a magnitude: the nodes of a tree of up to 7 bits
_PRIOR_SEEN = 8  # number of earlier observations that the initial state of a mask context stands for
_COLUMN_PRIOR = np.float32(1)
_PATTERN_PRIOR = np.float32(6)

# The first context of each kind; a tree of d bits has 2^d contexts, the first of them unused.
_MASK = 0
_SIGN = _MASK + _DENSITIES
_POLARITY = _SIGN + _SIGN_VOTES
_PATTERN = _POLARITY + 1
_MAGNITUDE = _PATTERN + MOST_PATTERNS
_CLASS = _MAGNITUDE + _MAGNITUDES
_CONTEXTS = _CLASS + (1 << _CLASS_BITS)


def code_matrix(
    decoding: bool,
    symbols: Symbols,
    stream: Bytes,
    coder: Integers,
    marked: Bytes,
    levels: Bytes,
    bits: int,
    patterns: NDArray[np.int32],
    pattern_count: int,
) -> None:
    """Encodes or decodes a matrix. Decoding stops when the levels are full or the stream is used up."""
    columns = marked.shape[1]
    chances, seen = np.full(_CONTEXTS, 1 << (CHANCE_BITS - 1), np.int64), np.zeros(_CONTEXTS, np.int64)
    middles = (((np.arange(_DENSITIES) + _LOWEST_DENSITY) << 21) + (1 << 20)).astype(np.uint32)
    densities = np.minimum(middles.view(np.float32), np.float32(0.9)) * np.float32(1 << CHANCE_BITS)
    chances[:_DENSITIES], seen[:_DENSITIES] = densities.astype(np.int64), _PRIOR_SEEN
    _code_rows(
        decoding, symbols, stream, coder, marked, levels, bits, patterns, pattern_count, chances, seen,
        np.zeros(pattern_count, np.float32), np.zeros((pattern_count, columns), np.float32),
        np.zeros(columns, np.float32), np.zeros((pattern_count, columns), np.int32),
        np.zeros(columns, np.uint16), np.zeros(columns, np.uint8), np.zeros(columns, np.int64),
        np.zeros(columns, np.int64), np.zeros(columns, np.int64), np.zeros(1, np.uint16),
        np.zeros(1, np.uint8),
    )  # fmt: skip


@compiled
def _code_rows(
    decoding: bool,
    symbols: Symbols,
    stream: Bytes,
    coder: Integers,
    marked: Bytes,
    levels: Bytes,
    bits: int,
    patterns: NDArray[np.int32],
    pattern_count: int,
    chances: Integers,
    seen: Integers,
    expected: FloatArray,
    kept_alike: FloatArray,
    kept_all: FloatArray,
    votes: NDArray[np.int32],
    contexts: Symbols,
    run: Bytes,
    places: Integers,
    nodes: Integers,
    magnitudes: Integers,
    one: Symbols,
    bit: Bytes,
) -> None:
    """Does the work of `code_matrix`, which makes the arrays: compiled, that would take seconds.

    expected: (pattern,), the sum of the densities of a pattern's rows; kept_alike: (pattern, column), what
    is kept among these; votes: (pattern, column), rows with a plus minus rows with a minus; the others are
    scratch of a row, of which one and bit are for a run of one bit.
    """
    rows, columns = marked.shape
    half, pattern_bits, level_index = 1 << max(bits - 1, 0), 0, 0
    while 1 << pattern_bits < pattern_count:
        pattern_bits += 1
    expected_all = np.float32(0)

    for row in range(rows):
        count = 0
        for column in range(columns):
            count += marked[row, column]
        wanted = (_row_class(count) << 8) | patterns[row]
        node = 1
        for depth in range(_CLASS_BITS):  # the row's class, then its pattern, then its polarity
            one[0], bit[0] = _CLASS + node, (wanted >> (8 + _CLASS_BITS - 1 - depth)) & 1
            _code_run(decoding, symbols, stream, coder, chances, seen, one, bit)
            node = 2 * node + bit[0]
        row_class = node - (1 << _CLASS_BITS)
        if row_class == 0:
            continue
        node = 1
        for depth in range(pattern_bits):
            one[0], bit[0] = _PATTERN + node, (wanted >> (pattern_bits - depth)) & 1
            _code_run(decoding, symbols, stream, coder, chances, seen, one, bit)
            node = 2 * node + bit[0]
        pattern = node - (1 << pattern_bits)
        one[0], bit[0] = _POLARITY, wanted & 1
        if bits:
            _code_run(decoding, symbols, stream, coder, chances, seen, one, bit)
        sign = 1 - 2 * np.int64(bit[0])

        density = _float(((row_class - 1) << 22) + _ONE + (1 << 21)) / np.float32(columns)
        _mask_contexts(density, kept_all, expected_all, kept_alike[pattern], expected[pattern], contexts)
        for column in range(columns):
            run[column] = marked[row, column]
        _code_run(decoding, symbols, stream, coder, chances, seen, contexts, run)
        found, alike = 0, kept_alike[pattern]
        for column in range(columns):
            places[found] = column  # branchless: the next one overwrites it
            found += run[column]
        for column in range(columns):
            marked[row, column] = run[column]
            kept_all[column] += np.float32(run[column])
            alike[column] += np.float32(run[column])
        if decoding and ((bits and level_index + found > levels.size) or coder[1] > stream.size):
            coder[1] = stream.size + 1
            return
        expected[pattern] += density
        expected_all += density
        if not bits:
            continue

        # A sign is coded as whether it equals the one that the vote of its column predicts.
        for index in range(found):
            vote = votes[pattern, places[index]]
            contexts[index] = _SIGN + min(abs(vote), _SIGN_VOTES - 1)
            run[index] = (levels[level_index + index] >= half) == (vote * sign >= 0)
        _code_run(decoding, symbols, stream, coder, chances, seen, contexts[:found], run[:found])
        for index in range(found):
            vote, level = votes[pattern, places[index]], np.int64(levels[level_index + index])
            positive = np.int64((vote * sign >= 0) == (run[index] == 1))
            votes[pattern, places[index]] = vote + (2 * positive - 1) * sign
            levels[level_index + index] = positive
            magnitudes[index] = level - half if positive else half - 1 - level
            nodes[index] = 1
        for depth in range(bits - 2, -1, -1):
            for index in range(found):
                contexts[index] = _MAGNITUDE + nodes[index]
                run[index] = (magnitudes[index] >> depth) & 1
            _code_run(decoding, symbols, stream, coder, chances, seen, contexts[:found], run[:found])
            for index in range(found):
                nodes[index] = 2 * nodes[index] + run[index]
        for index in range(found if bits > 1 else 0):
            positive = levels[level_index + index] == 1
            levels[level_index + index] = nodes[index] if positive else 2 * half - 1 - nodes[index]
        level_index += found


@compiled
def _mask_contexts(
    density: np.float32,
    kept_all: FloatArray,
    expected_all: np.float32,
    kept_alike: FloatArray,
    expected: np.float32,
    contexts: Symbols,
) -> None:
    """Writes the context of each column: the row's density times the relative density of the column."""
    for column in range(contexts.size):
        overall = (kept_all[column] + _COLUMN_PRIOR) / (expected_all + _COLUMN_PRIOR)
        share = (kept_alike[column] + _PATTERN_PRIOR * overall) / (expected + _PATTERN_PRIOR)
        context = (_bit_pattern(density * share) >> 21) - _LOWEST_DENSITY
        contexts[column] = _MASK + min(max(context, 0), _DENSITIES - 1)


@compiled
def _row_class(count: int) -> Any:
    """Returns 0 for an empty row, else 1 + 2 · (position of the leading bit) + the bit after it."""
    if count == 0:
        return 0
    return ((_bit_pattern(np.float32(count)) - _ONE) >> 22) + 1


@compiled
def _bit_pattern(value: np.float32) -> Any:
    return np.int64(np.float32(value).view(np.uint32))


@compiled
def _float(pattern: int) -> np.float32:
    return np.uint32(pattern).view(np.float32)


@compiled
def _code_run(
    decoding: bool,
    symbols: Symbols,
    stream: Bytes,
    coder: Integers,
    chances: Integers,
    seen: Integers,
    contexts: Symbols,
    bits: Bytes,
) -> None:
    """Encodes or decodes a run of bits, whose contexts don't depend on its bits, and updates the contexts.

    contexts, bits: (run,). chances, seen: (context,), the probability of a set bit and the number of
    observations. When encoding, `bits` are appended to `symbols` for `encode_symbols`, and coder[1] counts
    them. When decoding, `bits` are read from `stream`; coder holds the state and the number of bytes used.
    After the end of the stream zeros are read and counted.
    """
    state, used = coder[0], coder[1]
    for index in range(contexts.size):
        context = contexts[index]
        chance = chances[context]
        share = min(max(chance >> (CHANCE_BITS - _CODED_BITS), 1), _WHOLE - 1)
        if decoding:
            place, high = state & (_WHOLE - 1), state >> _CODED_BITS
            bit: Any = np.int64(place < share)  # branchless, because dense masks would make a branch slow
            width = share if bit else _WHOLE - share
            state = width * high + place - (0 if bit else share)
            if state < LOWEST_STATE:
                word: Any = np.int64(0)
                if used + 1 < stream.size:
                    word = np.int64(stream[used]) << 8 | np.int64(stream[used + 1])
                state, used = state << 16 | word, used + 2
            bits[index] = bit
        else:
            bit = np.int64(bits[index])
            symbols[used] = 2 * share + bit
            used += 1
        chances[context] = chance + ((((bit << CHANCE_BITS) - chance) * _RATES[seen[context]]) >> 16)
        seen[context] = min(seen[context] + 1, _MOST_SEEN)
    coder[0], coder[1] = state, used


@compiled
def encode_symbols(symbols: Symbols, out: Bytes) -> int:
    """Encodes symbols, the last one first, into the end of `out`; returns the start of the stream."""
    state, start = np.int64(LOWEST_STATE), out.size
    for index in range(symbols.size - 1, -1, -1):
        chance, bit = np.int64(symbols[index]) >> 1, symbols[index] & 1
        share, first = (chance, 0) if bit else (_WHOLE - chance, chance)
        if state >= share << (STATE_BITS - _CODED_BITS):
            out[start - 1], out[start - 2] = state & 255, (state >> 8) & 255
            start, state = start - 2, state >> 16
        state = ((state // share) << _CODED_BITS) + state % share + first
    for shift in range(0, STATE_BITS, 8):
        start -= 1
        out[start] = (state >> shift) & 255
    return start
