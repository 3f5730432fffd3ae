"""Converts packed masks to positions or gaps and back.

A mask has one bit per entry, the lowest bit of a byte first.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled, few

Mask = NDArray[np.uint8]
Positions = NDArray[np.uint32]
Words = NDArray[np.uint64]
Floats = NDArray[np.float32]

ESCAPE = 255
# A product with 2^k shifts the sequence by k places; its top 6 bits differ for each k.
_SEQUENCE, _TOP, _ONE = np.uint64(0x03F7_9D71_B4CB_0A89), np.uint64(58), np.uint64(1)
_PLACE_OF = np.argsort((_SEQUENCE << np.arange(64, dtype=np.uint64)) >> _TOP).astype(np.uint32)


def count_bits(mask: Mask) -> int:
    """Returns the number of set bits of a packed mask."""
    whole = len(mask) // 8 * 8
    words = np.bitwise_count(mask[:whole].view(np.uint64))
    return int(words.sum(dtype=np.int64)) + int(np.bitwise_count(mask[whole:]).sum(dtype=np.int64))


def mask_positions(mask: Mask, kept: int) -> Positions:
    """Returns the rising flat positions of the `kept` set bits of a mask of fewer than 2^32 entries."""
    if few(8 * len(mask)):
        return np.flatnonzero(np.unpackbits(mask, bitorder="little")).astype(np.uint32)
    found = np.empty(kept, np.uint32)
    _fill_positions(mask_words(mask), found)
    return found


def mask_words(mask: Mask) -> Words:
    """Returns a mask's bits in words of 64, the lowest bit first, unset ones at the end."""
    if len(mask) % 8 or not mask.flags.aligned or mask.ctypes.data % 8:
        mask = np.concatenate([mask, np.zeros(-len(mask) % 8, np.uint8)])
    return mask.view("<u8").astype(np.uint64, copy=False)


def marked_entries(entries: Floats, mask: Mask, kept: int) -> Floats:
    """Returns the entries at the `kept` set bits of a mask."""
    if few(len(entries)):
        return entries[np.unpackbits(mask, count=len(entries), bitorder="little").view(np.bool_)]
    found = np.empty(kept, np.float32)
    _gather(entries, mask_words(mask), found)
    return found


def mask_gaps(mask: Mask, kept: int) -> Positions:
    """Returns the number of unset bits between each set bit and the previous one, (kept,)."""
    positions = mask_positions(mask, kept)
    gaps = np.empty(kept, np.uint32)
    gaps[:1] = positions[:1]
    gaps[1:] = positions[1:] - positions[:-1] - np.uint32(1)
    return gaps


def mask_of(positions: Positions, entries: int) -> Mask:
    """Returns a mask of `entries` bits in which the given positions are set."""
    if few(entries):
        marked = np.zeros(entries, np.bool_)
        marked[positions] = True
        return np.packbits(marked, bitorder="little")
    mask = np.zeros(-(-entries // 8), np.uint8)
    _set_bits(positions, mask)
    return mask


def positions_after_gaps(gaps: Positions, entries: int) -> Positions | None:
    """Returns the positions for the given gaps, or None if they exceed the last entry."""
    ends = np.cumsum(gaps, dtype=np.int64) + np.arange(len(gaps))
    return None if len(ends) and ends[-1] >= entries else ends.astype(np.uint32)


def positions_after_steps(steps: Mask, kept: int, entries: int) -> Positions | None:
    """Returns the positions for gaps given as bytes, where `ESCAPE` continues with the next byte.

    Returns None if there are not `kept` positions, or they exceed the last entry, or the last byte is
    `ESCAPE`.
    """
    if few(len(steps)):
        ends = steps != ESCAPE
        reached = np.cumsum(steps + ends.astype(np.int64)) - 1
        whole = not len(steps) or (bool(ends[-1]) and reached[-1] < entries)
        return reached[ends].astype(np.uint32) if whole and np.count_nonzero(ends) == kept else None
    positions = np.empty(len(steps), np.uint32)
    return positions[:kept] if _follow_steps(steps, entries, positions) == kept else None


@compiled
def _lowest_bit(word: Any) -> Any:
    """Returns the place of the lowest set bit of a word that is not 0 (de Bruijn's sequence)."""
    return _PLACE_OF[((word & (~word + _ONE)) * _SEQUENCE) >> _TOP]


@compiled
def _fill_positions(words: Words, found: Positions) -> None:
    """Writes the positions of the set bits."""
    used = 0
    for index in range(words.size):
        word, start = words[index], np.uint32(64 * index)
        while word:
            found[used] = start + _lowest_bit(word)
            used += 1
            word &= word - _ONE


@compiled
def _gather(entries: Floats, words: Words, found: Floats) -> None:
    """Writes the entries at the set bits."""
    used = 0
    for index in range(words.size):
        word = words[index]
        while word:
            found[used] = entries[64 * index + _lowest_bit(word)]
            used += 1
            word &= word - _ONE


@compiled
def _set_bits(positions: Positions, mask: Mask) -> None:
    for position in positions:
        mask[position >> 3] |= np.uint8(1 << (position & 7))


@compiled
def _follow_steps(steps: Mask, entries: int, positions: Positions) -> int:
    """Writes the positions and returns their number, or -1 if the steps are invalid."""
    position, kept = np.int64(-1), 0
    for step in steps:
        ends = step != ESCAPE
        position += np.int64(step) + ends
        positions[kept] = position  # branchless: after an escape the next one overwrites it
        kept += ends
    if position >= entries or (steps.size and steps[-1] == ESCAPE):
        return -1
    return kept
