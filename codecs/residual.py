"""Codes a block of a fine-tuned tensor exactly, number by number, given the same block of the base.

Fine-tuning moves a number by an amount that its exponent and its neighbours foretell well: how many units in
its last place it moves depends on its exponent, and neighbours move alike.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import numpy as np

from flexswitch.codecs.codec import PayloadReader
from flexswitch.codecs.compiled import read_only
from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.residual_model import (
    ACTIVITIES,
    EXPONENTS,
    LANES,
    LOWEST_STATE,
    MOVES,
    RAW_SPARE,
    WHOLE,
    WORD_SPARE,
    Bytes,
    Integers,
    Numbers,
    Raw,
    Words,
    count_symbols,
    decode_block,
    encode_symbols,
    mean_level,
    model_block,
)
from flexswitch.codecs.scaled_numbers import LARGEST_FACTOR, MOST_MANTISSA, decay_factor, scaled
from flexswitch.codecs.zstd import zstd_compress, zstd_decompress

_CONTEXTS = EXPONENTS * ACTIVITIES
_LENGTH = np.dtype("<u4")
_TABLE_LEVEL = 9
_SHARE_COST = 9.0  # bits that a share takes in the table, about


class NumberKind(NamedTuple):
    """What a number consists of: its width in bits, and the bits of a floating number's mantissa, or 0."""

    width: int
    mantissa: int = 0

    @property
    def halves(self) -> bool:
        """Whether a distance has two buckets per octave instead of one."""
        return self.width < 64

    @property
    def buckets(self) -> int:
        """The number of buckets of a distance."""
        octaves = self.mantissa or self.width
        return 2 * octaves - 1 if self.halves else octaves

    @property
    def symbols(self) -> int:
        """The number of symbols."""
        return 2 * self.buckets + 1 + (2 * MOVES if self.mantissa else 0)

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The unsigned integers that hold the bit patterns."""
        return np.dtype(f"<u{self.width // 8}")


NUMBER_KINDS = {
    "F64": NumberKind(64, 52),
    "F32": NumberKind(32, 23),
    "F16": NumberKind(16, 10),
    "BF16": NumberKind(16, 7),
    "F8_E4M3": NumberKind(8, 3),
    "F8_E5M2": NumberKind(8, 2),
    **{f"{sign}{width}": NumberKind(width) for sign in "IU" for width in (8, 16, 32, 64)},
    "BOOL": NumberKind(8),
}


@dataclass(frozen=True)
class Residual:
    """exponents, activities: whether contexts tell the base's exponents, and the neighbours' changes, apart.

    level: the initial level. factor: the base's numbers are taken times 1 + factor / 2^24.
    """

    name: ClassVar[str] = "residual"

    exponents: int = 1
    activities: int = 1
    level: int = 0
    factor: int = 0

    def __post_init__(self) -> None:
        if self.exponents not in (0, 1) or self.activities not in (0, 1) or not 0 <= self.level < 1 << 20:
            raise ValueError(f"{self}, expected flags of 0 or 1 and a level of 0 to {(1 << 20) - 1}")
        if abs(self.factor) >= LARGEST_FACTOR:
            raise ValueError(f"{self}, expected a factor above -{LARGEST_FACTOR} and below {LARGEST_FACTOR}")

    @classmethod
    def encoded(cls, base: Numbers, found: Numbers, columns: int, kind: NumberKind) -> tuple[Self, bytes]:
        """Returns the settings that suit a block, and its bytes. base, found: (entry,), bit patterns."""
        found = read_only(found)
        factors = {0, decay_factor(base, found, kind.width, kind.mantissa)}
        made = [cls._encoded(base, found, columns, kind, factor) for factor in sorted(factors, key=abs)]
        return min(made, key=lambda each: len(each[1]))

    @classmethod
    def _encoded(
        cls, base: Numbers, found: Numbers, columns: int, kind: NumberKind, factor: int
    ) -> tuple[Self, bytes]:
        base = scaled(base, factor, kind.width, kind.mantissa)
        level = int(mean_level(base, found, kind.width, kind.mantissa))
        contexts, symbols = np.zeros(base.size, np.uint16), np.zeros(base.size, np.uint8)
        raw: Raw = np.zeros(base.size * (kind.width + 16) // 32 + RAW_SPARE, np.uint32)
        raw_bits = model_block(base, found, columns, *kind, kind.halves, level, contexts, symbols, raw)
        counts = np.zeros((_CONTEXTS, kind.symbols), np.int64)
        count_symbols(contexts, symbols, counts)
        choices = [cls(exponents, activities, level, factor) for exponents in (0, 1) for activities in (0, 1)]
        chosen = min(choices, key=lambda choice: _cost(choice._merged(counts)))
        shares = _shares(chosen._merged(counts))
        out, states = np.empty(base.size + LANES, np.uint16), np.full(LANES, LOWEST_STATE, np.int64)
        start = encode_symbols(contexts, symbols, chosen._rows(), shares, _sums(shares), states, out)
        frame = zstd_compress(shares.astype("<u2").tobytes(), _TABLE_LEVEL)
        words = out[start:].astype("<u2").tobytes()
        lengths = np.array([len(frame), len(words)], _LENGTH).tobytes()
        bits = raw.astype("<u4").tobytes()[: -(-raw_bits // 8)]
        return chosen, b"".join([lengths, frame, states.astype("<u4").tobytes(), words, bits])

    def decode(self, data: bytes, base: Numbers, columns: int, kind: NumberKind) -> Numbers:
        """Returns the bit patterns of a block, (entry,). Raises: DecodeError."""
        if self.factor and not 0 < kind.mantissa <= MOST_MANTISSA:
            raise DecodeError(f"a factor for numbers of {kind.width} bits, which are not multiplied")
        base = scaled(base, self.factor, kind.width, kind.mantissa)
        reader = PayloadReader(data)
        frame_bytes, word_bytes = np.frombuffer(reader.take(2 * _LENGTH.itemsize), _LENGTH).tolist()
        shares = self._stored_shares(reader.take(frame_bytes), kind)
        states: Integers = np.frombuffer(reader.take(4 * LANES), "<u4").astype(np.int64)
        if word_bytes % 2 or states.min() < LOWEST_STATE:
            raise DecodeError("the words or the states of the range coder are damaged")
        words = np.frombuffer(reader.take(word_bytes) + bytes(2 * WORD_SPARE), "<u2")
        bits = reader.rest()
        raw = np.frombuffer(bits + bytes(4 * RAW_SPARE - len(bits) % 4), "<u4")
        found = np.empty(base.size, kind.dtype)
        used = decode_block(
            base, found, columns, *kind, kind.halves, self.level, self._rows(shares), _slots(shares),
            shares.astype(np.uint32) << 16 | _sums(shares), *_distances(kind), states, words, raw,
            8 * len(bits),
        )  # fmt: skip
        is_whole = used >= 0 and -(-used // 8) == len(bits) and not (used % 8 and bits[-1] >> used % 8)
        if not is_whole or (states != LOWEST_STATE).any():
            raise DecodeError(f"the coded numbers do not give {base.size} entries")
        return found

    def _merged(self, counts: Integers) -> Integers:
        """Returns the counts of the contexts that the settings tell apart, (context, symbol)."""
        whole = counts.reshape(EXPONENTS, ACTIVITIES, -1)
        whole = whole if self.exponents else whole.sum(0, keepdims=True)
        whole = whole if self.activities else whole.sum(1, keepdims=True)
        return whole.reshape(-1, counts.shape[1])

    def _rows(self, shares: Words | None = None) -> Integers:
        """Returns the row of each context in the table, (context,); −1 where the table's row is empty."""
        exponents, activities = np.divmod(np.arange(_CONTEXTS), ACTIVITIES)
        rows = exponents * self.exponents * (ACTIVITIES if self.activities else 1)
        rows = rows + activities * self.activities
        return rows if shares is None else np.where((shares != 0).any(axis=1)[rows], rows, -1)

    def _stored_shares(self, frame: bytes, kind: NumberKind) -> Words:
        rows = (EXPONENTS if self.exponents else 1) * (ACTIVITIES if self.activities else 1)
        expected = rows * kind.symbols * 2
        content = zstd_decompress(frame, expected)
        if len(content) != expected:
            raise DecodeError(f"a table of {len(content)} bytes, expected {expected}")
        shares = np.frombuffer(content, "<u2").reshape(rows, kind.symbols)
        totals = shares.sum(1, dtype=np.int64)
        if not np.isin(totals, (0, WHOLE)).all():
            raise DecodeError(f"the shares of a context do not add up to {WHOLE}")
        return shares


def _cost(counts: Integers) -> float:
    """Returns about how many bits symbols of these counts take, (context, symbol), the table included."""
    used = counts[counts > 0]
    totals = counts.sum(1)
    totals = totals[totals > 0]
    return float((totals * np.log2(totals)).sum() - (used * np.log2(used)).sum() + _SHARE_COST * len(used))


def _shares(counts: Integers) -> Words:
    """Returns the share of each symbol in 4096ths, at least one if it occurs, (context, symbol)."""
    shares = np.zeros(counts.shape, np.int64)
    totals = counts.sum(1)
    for row in np.flatnonzero(totals):
        share = np.maximum(counts[row] * WHOLE // totals[row], counts[row] > 0)
        while (missing := WHOLE - int(share.sum())) < 0:
            share[share.argmax()] -= min(-missing, int(share.max()) // 2)
        share[share.argmax()] += missing
        shares[row] = share
    return shares.astype(np.uint16)


def _sums(shares: Words) -> Words:
    """Returns the sum of the shares before each symbol, (context, symbol)."""
    return (np.cumsum(shares, axis=1, dtype=np.int64) - shares).astype(np.uint16)


def _slots(shares: Words) -> Bytes:
    """Returns the symbol of each 4096th, (context, 4096)."""
    slots = np.zeros((len(shares), WHOLE), np.uint8)
    symbols = np.arange(shares.shape[1], dtype=np.uint8)
    for row in np.flatnonzero(shares.any(1)):
        slots[row] = np.repeat(symbols, shares[row])
    return slots


def _distances(kind: NumberKind) -> tuple[Integers, Integers, Integers]:
    """Returns the number of raw bits, the height and the smallest distance of each symbol, (symbol,)."""
    spares, offsets = np.full(kind.symbols, kind.mantissa, np.int64), np.zeros(kind.symbols, np.int64)
    heights = np.zeros(kind.symbols, np.int64)
    spares[0] = 0
    for bucket in range(1, kind.buckets + 1):
        octave = bucket // 2 if kind.halves else bucket - 1
        spare = max(octave - 1, 0) if kind.halves else octave
        head = bucket - max(2 * octave - 2, 0) if kind.halves else 1
        spares[2 * bucket - 1 : 2 * bucket + 1] = spare
        offsets[2 * bucket - 1 : 2 * bucket + 1] = np.uint64(head << spare).astype(np.int64)
        heights[2 * bucket - 1 : 2 * bucket + 1] = bucket << (4 if kind.halves else 5)
    heights[0] = -16
    return spares, offsets, heights
