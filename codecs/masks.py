"""Compiled passes over packed masks: the kept positions, the gaps between them, and back.

A mask has one bit an entry, the lowest bit of a byte first. The tests hold a plain twin of each pass.
"""

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled

Mask = NDArray[np.uint8]
Positions = NDArray[np.uint32]

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")  # (byte, 8)
COUNTS = _BITS.sum(axis=1, dtype=np.uint8)
# The places of a byte's set bits, then whatever: the pass below overwrites them.
PLACES = np.argsort(1 - _BITS, axis=1, kind="stable").astype(np.uint8)  # (byte, 8)
ESCAPE = 255


def count_bits(mask: Mask) -> int:
    """Returns how many bits of a packed mask are set."""
    whole = len(mask) // 8 * 8
    words = np.bitwise_count(mask[:whole].view(np.uint64))
    return int(words.sum(dtype=np.int64)) + int(np.bitwise_count(mask[whole:]).sum(dtype=np.int64))


def mask_positions(mask: Mask, kept: int) -> Positions:
    """Returns the rising flat positions of the `kept` set bits of a mask of less than 2^32 entries."""
    found = np.empty(kept + 8, np.uint32)
    _fill_positions(mask, found)
    return found[:kept]


def mask_gaps(mask: Mask, kept: int) -> Positions:
    """Returns the number of unset bits in front of each set one, since the last, (kept,)."""
    positions = mask_positions(mask, kept)
    gaps = np.empty(kept, np.uint32)
    gaps[:1] = positions[:1]
    gaps[1:] = positions[1:] - positions[:-1] - np.uint32(1)
    return gaps


def mask_of(positions: Positions, entries: int) -> Mask:
    """Returns the mask of `entries` bits with these set."""
    mask = np.zeros(-(-entries // 8), np.uint8)
    _set_bits(positions, mask)
    return mask


def positions_after_gaps(gaps: Positions, entries: int) -> Positions | None:
    """Returns the positions that these gaps lead to, None where they lead behind the last entry."""
    ends = np.cumsum(gaps, dtype=np.int64) + np.arange(len(gaps))
    return None if len(ends) and ends[-1] >= entries else ends.astype(np.uint32)


def positions_after_steps(steps: Mask, kept: int, entries: int) -> Positions | None:
    """Returns the positions that gaps of one byte lead to; `ESCAPE` stands for that many and goes on.

    None where they are not `kept`, lead behind the last entry, or stop on an escape.
    """
    positions = np.empty(len(steps), np.uint32)
    return positions[:kept] if _follow_steps(steps, entries, positions) == kept else None


@compiled
def _fill_positions(mask: Mask, found: Positions) -> None:
    used, words = 0, mask[: mask.size // 8 * 8].view(np.uint64)
    for word in range(words.size + 1):
        if word < words.size and words[word] == 0:
            continue
        for index in range(8 * word, min(8 * word + 8, mask.size)):
            byte = mask[index]
            # All eight places are written, without a branch; the next byte overwrites those that are unset.
            for place in range(8):
                found[used + place] = np.uint32(8 * index) + PLACES[byte, place]
            used += COUNTS[byte]


@compiled
def _set_bits(positions: Positions, mask: Mask) -> None:
    for position in positions:
        mask[position >> 3] |= np.uint8(1 << (position & 7))


@compiled
def _follow_steps(steps: Mask, entries: int, positions: Positions) -> int:
    """Writes the positions and returns their number, -1 where the steps lead nowhere."""
    position, kept = np.int64(-1), 0
    for step in steps:
        ends = step != ESCAPE
        position += np.int64(step) + ends
        positions[kept] = position  # without a branch: after an escape the next one overwrites it
        kept += ends
    if position >= entries or (steps.size and steps[-1] == ESCAPE):
        return -1
    return kept
