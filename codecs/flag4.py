"""`flag4`: the storage format of the published T-Switch code, in planes.

A flag for each group of 4 entries, 1 if it keeps an entry; the 4 mask bits of each flagged group; the levels
of the kept entries. Source: Qi et al. 2025, released code (Binary-Task-Switch), which interleaves mask and
sign bits group by group; the total size is the same.
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
from flexswitch.codecs.sparse import SparseLayout, SparseStats, SparseTensor


@dataclass(frozen=True)
class Flag4:
    """Groups of 4 entries, with 4 bits for each group that keeps an entry."""

    name: ClassVar[str] = "flag4"
    fast: ClassVar[bool] = False

    @classmethod
    def fitted(cls, stats: SparseStats) -> Self:
        """Returns the codec, which has no settings."""
        return cls()

    def encode(self, sparse: SparseTensor) -> bytes:
        """Returns the flags, the flagged groups' masks, then the levels."""
        groups = -(-sparse.layout.entries // 4)
        nibbles = np.stack([sparse.mask & 0x0F, sparse.mask >> 4], axis=1).reshape(-1)[:groups]  # (groups,)
        flags = nibbles != 0
        fields = [
            np.packbits(flags, bitorder="little").tobytes(),
            pack_fields(nibbles[flags], 4),
            pack_levels(sparse.levels, sparse.bits),
        ]
        return b"".join(fields)

    def decode(self, data: bytes, layout: SparseLayout) -> SparseTensor:
        """Returns the tensor. Raises: DecodeError."""
        reader = PayloadReader(data)
        groups = -(-layout.entries // 4)
        flag_bits = unpack_mask(reader.take(packed_bytes(groups, 1)), groups)
        flagged_count = count_bits(flag_bits)
        flags = np.unpackbits(flag_bits, count=groups, bitorder="little").view(np.bool_)
        flagged = unpack_fields(reader.take(packed_bytes(flagged_count, 4)), 4, flagged_count)
        if not flagged.all():
            raise DecodeError("a flagged group keeps no entry")
        nibbles = np.zeros(groups + groups % 2, np.uint8)
        nibbles[:groups][flags] = flagged
        mask = unpack_mask((nibbles[0::2] | nibbles[1::2] << 4).tobytes(), layout.entries)
        check_kept(count_bits(mask), layout)
        return SparseTensor(layout.shape, mask, take_levels(reader, layout), layout.bits)

    def estimate_bytes(self, stats: SparseStats) -> int:
        """Returns the exact size."""
        flags = packed_bytes(-(-stats.layout.entries // 4), 1)
        nibbles = packed_bytes(stats.occupied[4], 4)
        return flags + nibbles + packed_bytes(stats.layout.kept, stats.layout.bits)
