"""Converts packed masks to positions or gaps and back.

A mask has one bit per entry, the lowest bit of a byte first.
"""

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled, few

Mask = NDArray[np.uint8]
Positions = NDArray[np.uint32]

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")  # (byte, 8)
COUNTS = _BITS.sum(axis=1, dtype=np.uint8)
# The positions of a byte's set bits, then values that are overwritten below.
PLACES = np.argsort(1 - _BITS, axis=1, kind="stable").astype(np.uint8)  # (byte, 8)
ESCAPE = 255


def count_bits(mask: Mask) -> int:
    """Returns the number of set bits of a packed mask."""
    whole = len(mask) // 8 * 8
    words = np.bitwise_count(mask[:whole].view(np.uint64))
    return int(words.sum(dtype=np.int64)) + int(np.bitwise_count(mask[whole:]).sum(dtype=np.int64))


def mask_positions(mask: Mask, kept: int) -> Positions:
    """Returns the rising flat positions of the `kept` set bits of a mask of fewer than 2^32 entries."""
    if few(8 * len(mask)):
        return np.flatnonzero(np.unpackbits(mask, bitorder="little")).astype(np.uint32)
    found = np.empty(kept + 8, np.uint32)
    words = mask[: len(mask) // 8 * 8].view(np.uint64)
    _fill_positions(mask, words if words.flags.aligned else words.copy(), found)
    return found[:kept]


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
def _fill_positions(mask: Mask, words: NDArray[np.uint64], found: Positions) -> None:
    """Writes the positions of the set bits. words: the whole words of the mask."""
    used = 0
    for word in range(words.size + 1):
        if word < words.size and words[word] == 0:
            continue
        for index in range(8 * word, min(8 * word + 8, mask.size)):
            byte = mask[index]
            # Branchless: all eight positions are written, and the next byte overwrites the unused ones.
            for place in range(8):
                found[used + place] = np.uint32(8 * index) + PLACES[byte, place]
            used += COUNTS[byte]


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
