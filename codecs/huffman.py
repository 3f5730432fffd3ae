"""How many bytes zstandard will need for data without repeats: those of an optimal Huffman code."""

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled

_CHUNK_BYTES = 1 << 17  # zstandard makes a new table for each chunk
_TABLE_BYTES = 40  # about what a table of 100 symbols takes
_HEAD_BYTES = 12  # of a frame, a chunk and its four streams


def byte_counts(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Returns how often each byte occurs, (256,)."""
    counts = np.zeros((4, 256), np.int64)
    _count_bytes(data, counts)
    total: NDArray[np.int64] = counts.sum(axis=0)
    return total


def frame_bytes(counts: NDArray[np.int64], repeats_below: float, lost: float) -> int:
    """Returns about the bytes of a zstandard frame of symbols that occur so often, (256,).

    In data of few bits a symbol zstandard finds chance repeats that cost more than they save: below
    `repeats_below` bits a symbol it loses the share `lost` for each bit (both measured).
    """
    total, used = int(counts.sum()), np.sort(counts[counts > 0])
    if total < 64 or len(used) < 2:
        return (_HEAD_BYTES if total >= 64 else total) + 2
    chunks = -(-total // _CHUNK_BYTES)
    bits = _code_bits(used)
    bits = round(bits * (1 + lost * max(0.0, repeats_below - bits / total)))
    coded = -(-bits // 8) + chunks * (len(used) * _TABLE_BYTES // 100 + _HEAD_BYTES)
    return min(coded, total + 3 * chunks + 2)


@compiled
def _count_bytes(data: NDArray[np.uint8], counts: NDArray[np.int64]) -> None:
    # In turn into four tables: one would wait wherever a byte is that of the one before.
    for index in range(data.size):
        counts[index & 3, data[index]] += 1


@compiled
def _code_bits(counts: NDArray[np.int64]) -> int:
    """Returns the bits of all symbols under the optimal prefix code, given their rising counts."""
    size = counts.size
    merged = np.empty(size, np.int64)  # weights of inner nodes; they come in rising order
    leaf, inner, made, bits = 0, 0, 0, 0
    while made < size - 1:
        weight = 0
        for _ in range(2):
            if leaf < size and (inner >= made or counts[leaf] <= merged[inner]):
                weight += counts[leaf]
                leaf += 1
            else:
                weight += merged[inner]
                inner += 1
        merged[made] = weight
        made += 1
        bits += weight
    return bits
