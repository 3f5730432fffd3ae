"""Sparse tensors, which methods produce and codecs store: kept positions and their levels.

With 0 bits there is only the mask, and every kept entry has the value scale. A level l of 1 to 8 bits stands
for one of 2^bits evenly spaced values in [-scale, scale], scale · (2l + 1 − 2^bits) / (2^bits − 1), none of
which is zero. With one bit, 0 means −scale and 1 means +scale. In a tensor with a zero point the value is
scale · (l − zero) instead, and the level of a kept entry is never the zero point. A level of 16 or 32 bits is
the bit pattern of the value, bfloat16 or float32, and never 0; scale is then 1.
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
MAX_BLOCK_ENTRIES = 1 << 20  # of a block that a codec codes at once


@dataclass(frozen=True)
class SparseLayout:
    """What a container records of a sparse tensor in addition to its encoding."""

    shape: tuple[int, ...]
    kept: int
    bits: int

    @property
    def entries(self) -> int:
        """Number of entries, kept or dropped."""
        return math.prod(self.shape)

    @property
    def mask_bytes(self) -> int:
        """Size in bytes of a mask of one bit per entry."""
        return -(-self.entries // 8)


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """The kept entries of one tensor, in row-major order.

    mask: (⌈entries / 8⌉,) uint8, one bit per entry, lowest bit first; unused bits are zero.
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
        """Number of dropped entries between each kept entry and the previous one, (kept,)."""
        return mask_gaps(self.mask, len(self.levels))

    def dense_blocks(
        self, scale: float, block_entries: int = MAX_BLOCK_ENTRIES, zero: int | None = None
    ) -> Iterator[FloatArray]:
        """Yields the decoded values as flat float32 blocks; dropped entries are zero.

        block_entries: a multiple of 8; the values do not depend on it.
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
    """Statistics from which codecs estimate their size, computed on first use."""

    def __init__(self, sparse: SparseTensor) -> None:
        self.sparse = sparse
        self.layout = sparse.layout
        self._quotients: dict[int, int] = {}

    def quotients(self, width: int) -> int:
        """Returns Σ ⌊gap / 2^width⌋ over all gaps."""
        if width not in self._quotients:
            # No sum of gaps reaches 2^32, since they lie in a mask of fewer entries.
            total = (self.sparse.gaps >> np.uint32(width)).sum(dtype=np.uint32)
            self._quotients[width] = int(total)
        return self._quotients[width]

    @cached_property
    def occupied(self) -> dict[int, int]:
        """Number of groups of g consecutive entries with a kept entry, for each g in `GROUP_SIZES`."""
        mask = self.sparse.mask
        occupied = {4: int(np.count_nonzero(mask & 0x0F)) + int(np.count_nonzero(mask & 0xF0))}
        alive = mask != 0  # (⌈entries / 8⌉,)
        for size in GROUP_SIZES[1:]:
            occupied[size] = int(np.count_nonzero(alive))
            alive = np.append(alive, False) if len(alive) % 2 else alive
            alive = alive[0::2] | alive[1::2]
        return occupied


def shannon_bits(layout: SparseLayout) -> float:
    """Returns n·H₂(kept / n) + kept·bits, the bound for a random mask of that density and random levels."""
    return layout.entries * binary_entropy(layout.kept / max(1, layout.entries)) + layout.kept * layout.bits


def binary_entropy(share: float) -> float:
    """Returns the binary entropy H₂ in bits.

    >>> binary_entropy(0.5)
    1.0
    """
    if share in (0, 1):
        return 0.0
    return -share * math.log2(share) - (1 - share) * math.log2(1 - share)


def level_values(levels: Levels, bits: int, scale: float, zero: int | None = None) -> FloatArray:
    """Returns the float32 values of levels, rounded once from float64."""
    if bits == 32:
        return levels.view(np.float32)
    if bits == 16:
        return (levels.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return level_table(bits, scale, zero)[levels]


def level_table(bits: int, scale: float, zero: int | None = None) -> FloatArray:
    """Returns the float32 value of each level of up to 8 bits, rounded once from float64, (2^bits,)."""
    steps = (1 << bits) - 1
    if zero is not None:
        with np.errstate(over="ignore"):  # values beyond float32 become infinite, as float levels may be
            return (np.float64(scale) * (np.arange(steps + 1) - zero)).astype(np.float32)
    if not steps:
        return np.full(1, scale, np.float32)
    return (np.float64(scale) * (2 * np.arange(steps + 1) - steps) / steps).astype(np.float32)
