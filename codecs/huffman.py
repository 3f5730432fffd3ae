"""Estimates the size of zstandard frames of data without repeats, from an optimal Huffman code."""

import heapq

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled, few

_CHUNK_BYTES = 1 << 17  # zstandard writes a new table for each chunk
_TABLE_BYTES = 40  # approximate size of a table of 100 symbols
_HEAD_BYTES = 12  # headers of a frame, a chunk and its four streams


def byte_counts(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Returns the number of occurrences of each byte, (256,)."""
    if few(len(data)):
        return np.bincount(data, minlength=256)
    counts = np.zeros((4, 256), np.int64)
    _count_bytes(data, counts)
    total: NDArray[np.int64] = counts.sum(axis=0)
    return total


def frame_bytes(counts: NDArray[np.int64], repeats_below: float, lost: float) -> int:
    """Returns the approximate size of a zstandard frame of symbols with the given counts, (256,).

    In data with little information per symbol, zstandard finds accidental repeats that cost more than they
    save. Each bit per symbol below `repeats_below` adds the share `lost` to the size (both measured).
    """
    total, used = int(counts.sum()), np.sort(counts[counts > 0])
    if total < 64 or len(used) < 2:
        return (_HEAD_BYTES if total >= 64 else total) + 2
    chunks = -(-total // _CHUNK_BYTES)
    bits = _merged_weights(used.tolist()) if few(len(used)) else _code_bits(used)
    bits = round(bits * (1 + lost * max(0.0, repeats_below - bits / total)))
    coded = -(-bits // 8) + chunks * (len(used) * _TABLE_BYTES // 100 + _HEAD_BYTES)
    return min(coded, total + 3 * chunks + 2)


def _merged_weights(heap: list[int]) -> int:
    """Returns what `_code_bits` does; for few symbols."""
    bits = 0
    while len(heap) > 1:
        weight = heapq.heappop(heap) + heapq.heappop(heap)
        heapq.heappush(heap, weight)
        bits += weight
    return bits


@compiled
def _count_bytes(data: NDArray[np.uint8], counts: NDArray[np.int64]) -> None:
    # Four tables in turn, because increments of the same counter wait for each other.
    for index in range(data.size):
        counts[index & 3, data[index]] += 1


@compiled
def _code_bits(counts: NDArray[np.int64]) -> int:
    """Returns the total bits of all symbols in an optimal prefix code, given their counts in rising order."""
    size = counts.size
    merged = np.empty(size, np.int64)  # weights of inner nodes, in rising order
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
