"""The form in which methods hand a compressed tensor to codecs: kept positions and their levels.

With 0 bits there are no values, only the mask. A level of 1 to 8 bits is an index l into the
2^bits evenly spaced values of [-scale, scale]:
value = scale · (2l + 1 − 2^bits) / (2^bits − 1); there is no zero among them. With one bit, 0 stands
for −scale and 1 for +scale. Where a tensor has a zero point, value = scale · (l − zero) instead, and no
entry is kept whose level is the zero point. A level of 16 or 32 bits is the value's own bit pattern,
bfloat16 or float32, never the pattern 0; scale is then 1.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.masks import count_bits, mask_gaps

Levels = NDArray[np.unsignedinteger[Any]]
FloatArray = NDArray[np.float32]

LEVEL_DTYPES: dict[int, np.dtype[Any]] = {
    **dict.fromkeys(range(9), np.dtype(np.uint8)),
    16: np.dtype("<u2"),
    32: np.dtype("<u4"),
}
GROUP_SIZES = (4, 8, 16, 32, 64, 128, 256)
BLOCK_ENTRIES = 1 << 20  # entries that are coded together, at most


@dataclass(frozen=True)
class SparseLayout:
    """What a container records of a sparse tensor beside its bytes."""

    shape: tuple[int, ...]
    kept: int
    bits: int

    @property
    def entries(self) -> int:
        """Number of entries, kept or not."""
        return math.prod(self.shape)

    @property
    def mask_bytes(self) -> int:
        """Bytes of a mask of one bit an entry."""
        return -(-self.entries // 8)


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """The kept entries of one tensor, in row-major order.

    mask: (⌈entries / 8⌉,) uint8, one bit an entry, the lowest bit first, unused bits zero.
    levels: (kept,) in the dtype of `LEVEL_DTYPES[bits]`.
    """

    shape: tuple[int, ...]
    mask: NDArray[np.uint8]
    levels: Levels
    bits: int

    def __post_init__(self) -> None:
        layout = self.layout
        if self.mask.shape != (layout.mask_bytes,) or self.levels.dtype != LEVEL_DTYPES[self.bits]:
            raise ValueError(f"mask {self.mask.shape} or levels {self.levels.dtype} do not fit {layout}")
        if count_bits(self.mask) != layout.kept:
            raise ValueError(f"the mask does not mark {layout.kept} entries")
        if self.bits >= 16 and not self.levels.all():
            raise ValueError("a kept value has the bit pattern 0")

    @property
    def layout(self) -> SparseLayout:
        """Shape, kept count and bits."""
        return SparseLayout(self.shape, len(self.levels), self.bits)

    @cached_property
    def gaps(self) -> NDArray[np.uint32]:
        """Number of dropped entries in front of each kept one, since the last, (kept,)."""
        return mask_gaps(self.mask, len(self.levels))

    def dense_blocks(
        self, scale: float, block_entries: int = BLOCK_ENTRIES, zero: int | None = None
    ) -> Iterator[FloatArray]:
        """Yields the reconstructed values as flat float32 blocks, dropped entries as zeros.

        `block_entries` is a multiple of 8. The blocks do not depend on it.
        """
        values = level_values(self.levels, self.bits, scale, zero)  # (kept,)
        entries, used = self.layout.entries, 0
        for start in range(0, entries, block_entries):
            count = min(block_entries, entries - start)
            bits = self.mask[start // 8 : -(-(start + count) // 8)]
            marked = np.unpackbits(bits, count=count, bitorder="little").view(np.bool_)
            kept = int(np.count_nonzero(marked))
            block = np.zeros(count, np.float32)
            block[marked] = values[used : used + kept]
            used += kept
            yield block


class SparseStats:
    """What codecs tell their size from, counted when it is first asked for."""

    def __init__(self, sparse: SparseTensor) -> None:
        self.sparse = sparse
        self.layout = sparse.layout

    @cached_property
    def occupied(self) -> dict[int, int]:
        """Number of groups of g consecutive entries that hold a kept one, for each g in `GROUP_SIZES`."""
        mask = self.sparse.mask
        occupied = {4: int(np.count_nonzero(mask & 0x0F)) + int(np.count_nonzero(mask & 0xF0))}
        alive = mask != 0  # (⌈entries / 8⌉,)
        for size in GROUP_SIZES[1:]:
            occupied[size] = int(np.count_nonzero(alive))
            alive = np.append(alive, False) if len(alive) % 2 else alive
            alive = alive[0::2] | alive[1::2]
        return occupied


def shannon_bits(layout: SparseLayout) -> float:
    """Returns n·H₂(kept / n) + kept·bits: the least for a mask of that density and incompressible levels."""
    return layout.entries * binary_entropy(layout.kept / max(1, layout.entries)) + layout.kept * layout.bits


def binary_entropy(share: float) -> float:
    """Returns H₂ in bits.

    >>> binary_entropy(0.5)
    1.0
    """
    if share in (0, 1):
        return 0.0
    return -share * math.log2(share) - (1 - share) * math.log2(1 - share)


def level_values(levels: Levels, bits: int, scale: float, zero: int | None = None) -> FloatArray:
    """Returns the float32 values that levels stand for, rounded once from float64."""
    if bits == 32:
        return levels.view(np.float32)
    if bits == 16:
        return (levels.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return level_table(bits, scale, zero)[levels]


def level_table(bits: int, scale: float, zero: int | None = None) -> FloatArray:
    """Returns the float32 value of each level of up to 8 bits, rounded once from float64, (2^bits,)."""
    steps = (1 << bits) - 1
    if zero is not None:
        with np.errstate(over="ignore"):  # infinite where float32 ends, as floating levels may be
            return (np.float64(scale) * (np.arange(steps + 1) - zero)).astype(np.float32)
    if not steps:
        return np.zeros(1, np.float32)
    return (np.float64(scale) * (2 * np.arange(steps + 1) - steps) / steps).astype(np.float32)
