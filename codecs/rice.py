"""`rice`: the numbers of dropped entries between kept ones in a Rice code, for the sparsest tensors.

Source: R. F. Rice 1979, "Some practical universal noiseless coding techniques". The unary and the fixed
parts are in separate planes, so that each is read in one pass.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from flexswitch.codecs.bits import (
    pack_fields,
    pack_levels,
    packed_bytes,
    unpack_wide_fields,
)
from flexswitch.codecs.codec import PayloadReader, check_block, check_kept, take_level_plane
from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.masks import Positions, count_bits, mask_gaps, mask_of, positions_after_gaps
from flexswitch.codecs.sparse import Levels, SparseLayout, SparseStats, SparseTensor

_WIDEST = 20


@dataclass(frozen=True)
class Rice:
    """remainder: number of bits of the fixed part of a gap, in 0..20; the rest is unary."""

    name: ClassVar[str] = "rice"
    fast: ClassVar[bool] = True

    remainder: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.remainder <= _WIDEST:
            raise ValueError(f"remainder {self.remainder}, expected one of 0..{_WIDEST}")

    @classmethod
    def fitted(cls, stats: SparseStats) -> Self:
        """Returns the codec with the remainder that gives the smallest encoding, the smaller one on a tie."""
        mean = stats.layout.entries / max(1, stats.layout.kept)
        width = min(_WIDEST, max(0, int(mean).bit_length() - 1))
        bits = cls(width)._gap_bits(stats)
        # The number of bits is a convex function of the width: search downwards, else upwards.
        step = -1 if width and cls(width - 1)._gap_bits(stats) <= bits else 1
        while 0 <= width + step <= _WIDEST:
            found = cls(width + step)._gap_bits(stats)
            if found > bits or (found == bits and step > 0):
                break
            width, bits = width + step, found
        near = range(max(0, width - 2), min(_WIDEST, width + 2) + 1)  # planes end on whole bytes
        return min((cls(each) for each in near), key=lambda codec: codec.estimate_bytes(stats))

    def encode(self, sparse: SparseTensor) -> bytes:
        """Returns the levels, the remainders, then the unary parts."""
        check_block(sparse.layout, ValueError)
        gaps = sparse.gaps
        ends = np.cumsum((gaps >> np.uint32(self.remainder)) + np.uint32(1), dtype=np.int64)  # (kept,)
        unary = np.zeros(ends[-1] if ends.size else 0, np.uint8)
        unary[ends - 1] = 1
        remainders = gaps & np.uint32((1 << self.remainder) - 1)
        fields = [
            pack_levels(sparse.levels, sparse.bits),
            pack_fields(remainders, self.remainder),
            np.packbits(unary, bitorder="little").tobytes(),
        ]
        return b"".join(fields)

    def decode(self, data: bytes, layout: SparseLayout) -> SparseTensor:
        """Returns the tensor. Raises: DecodeError."""
        positions, levels = self.entries(data, layout)
        return SparseTensor(layout.shape, mask_of(positions, layout.entries), levels, layout.bits)

    def entries(self, data: bytes, layout: SparseLayout) -> tuple[Positions, Levels]:
        """Returns the kept positions and their levels. Raises: DecodeError."""
        check_block(layout)
        reader, width = PayloadReader(data), self.remainder
        levels = take_level_plane(reader, layout)
        remainders = unpack_wide_fields(reader.take(packed_bytes(layout.kept, width)), width, layout.kept)
        unary = np.frombuffer(reader.rest(), np.uint8)
        check_kept(count_bits(unary), layout)
        if unary.size and not unary[-1]:
            raise DecodeError("a zero byte follows the last gap")
        quotients = mask_gaps(unary, layout.kept)
        if quotients.size and int(quotients.max()) > layout.entries >> width:
            raise DecodeError("a gap exceeds the last entry")
        positions = positions_after_gaps((quotients << np.uint32(width)) | remainders, layout.entries)
        if positions is None:
            raise DecodeError("the gaps exceed the last entry")
        return positions, levels

    def estimate_bytes(self, stats: SparseStats) -> int:
        """Returns the exact size."""
        kept = stats.layout.kept
        unary = self._gap_bits(stats) - kept * self.remainder
        planes = packed_bytes(unary, 1) + packed_bytes(kept, self.remainder)
        return planes + packed_bytes(kept, stats.layout.bits)

    def _gap_bits(self, stats: SparseStats) -> int:
        """Returns the number of bits of all gaps."""
        return stats.quotients(self.remainder) + stats.layout.kept * (1 + self.remainder)
