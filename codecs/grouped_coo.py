"""`grouped-coo`: the storage format of the FlexSwitch paper.

A flag for each group of G entries, 1 if it keeps an entry; for each flagged group the number of its kept
entries minus one, and their offsets, log₂ G bits each; the levels of the kept entries. Source: Gao et al.
2026 (arXiv 2604.28109), sparsity-aware storage strategy.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from flexswitch.codecs.bits import (
    pack_fields,
    pack_levels,
    packed_bytes,
    unpack_fields,
    unpack_mask,
)
from flexswitch.codecs.codec import PayloadReader, check_kept, take_levels
from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.masks import count_bits
from flexswitch.codecs.sparse import GROUP_SIZES, SparseLayout, SparseStats, SparseTensor


@dataclass(frozen=True)
class GroupedCoo:
    """group: number of entries of a group, a power of two from 4 to 256."""

    name: ClassVar[str] = "grouped-coo"
    fast: ClassVar[bool] = False

    group: int = 16

    def __post_init__(self) -> None:
        if self.group not in GROUP_SIZES:
            raise ValueError(f"group {self.group}, expected one of {GROUP_SIZES}")

    @property
    def _width(self) -> int:
        return self.group.bit_length() - 1

    @classmethod
    def fitted(cls, stats: SparseStats) -> Self:
        """Returns the codec with the group size of the smallest encoding, the smaller one on a tie."""
        return min((cls(group) for group in GROUP_SIZES), key=lambda codec: codec.estimate_bytes(stats))

    def encode(self, sparse: SparseTensor) -> bytes:
        """Returns the flags, the flagged groups' counts, the offsets, then the levels."""
        groups = -(-sparse.layout.entries // self.group)
        marked = np.unpackbits(sparse.mask, count=sparse.layout.entries, bitorder="little")
        positions = np.flatnonzero(marked)  # (kept,)
        counts = np.bincount(positions // self.group, minlength=groups)  # (groups,)
        flags = counts != 0
        fields = [
            np.packbits(flags, bitorder="little").tobytes(),
            pack_fields((counts[flags] - 1).astype(np.uint8), self._width),
            pack_fields((positions % self.group).astype(np.uint8), self._width),
            pack_levels(sparse.levels, sparse.bits),
        ]
        return b"".join(fields)

    def decode(self, data: bytes, layout: SparseLayout) -> SparseTensor:
        """Returns the tensor. Raises: DecodeError."""
        reader, width = PayloadReader(data), self._width
        groups = -(-layout.entries // self.group)
        flag_bits = unpack_mask(reader.take(packed_bytes(groups, 1)), groups)
        flags = np.unpackbits(flag_bits, count=groups, bitorder="little").view(np.bool_)
        flagged = count_bits(flag_bits)
        counts = unpack_fields(reader.take(packed_bytes(flagged, width)), width, flagged).astype(np.int64) + 1
        check_kept(int(counts.sum()), layout)
        starts = np.repeat(np.flatnonzero(flags) * self.group, counts)  # (kept,)
        offsets = unpack_fields(reader.take(packed_bytes(layout.kept, width)), width, layout.kept)
        positions = starts + offsets
        if positions.size and (positions[-1] >= layout.entries or (np.diff(positions) <= 0).any()):
            raise DecodeError("the kept positions do not rise, or exceed the last entry")
        marked = np.zeros(layout.entries, np.bool_)
        marked[positions] = True
        levels = take_levels(reader, layout)
        return SparseTensor(layout.shape, np.packbits(marked, bitorder="little"), levels, layout.bits)

    def estimate_bytes(self, stats: SparseStats) -> int:
        """Returns the exact size."""
        layout = stats.layout
        flags = packed_bytes(-(-layout.entries // self.group), 1)
        counts = packed_bytes(stats.occupied[self.group], self._width)
        offsets = packed_bytes(layout.kept, self._width)
        return flags + counts + offsets + packed_bytes(layout.kept, layout.bits)
