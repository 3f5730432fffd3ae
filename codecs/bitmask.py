"""`bitmask`: one bit per entry, 1 if it is kept, then the levels of the kept entries."""

from dataclasses import dataclass
from typing import ClassVar, Self

from flexswitch.codecs.bits import pack_levels, packed_bytes, unpack_mask
from flexswitch.codecs.codec import PayloadReader, check_kept, take_levels
from flexswitch.codecs.masks import count_bits
from flexswitch.codecs.sparse import SparseLayout, SparseStats, SparseTensor


@dataclass(frozen=True)
class Bitmask:
    """Source: Qi et al. 2025 (arXiv 2412.00054), activation switch and polarity switch."""

    name: ClassVar[str] = "bitmask"
    fast: ClassVar[bool] = True

    @classmethod
    def fitted(cls, stats: SparseStats) -> Self:
        """Returns the codec, which has no settings."""
        return cls()

    def encode(self, sparse: SparseTensor) -> bytes:
        """Returns the mask, then the levels."""
        return sparse.mask.tobytes() + pack_levels(sparse.levels, sparse.bits)

    def decode(self, data: bytes, layout: SparseLayout) -> SparseTensor:
        """Returns the tensor. Raises: DecodeError."""
        reader = PayloadReader(data)
        mask = unpack_mask(reader.take(layout.mask_bytes), layout.entries)
        check_kept(count_bits(mask), layout)
        levels = take_levels(reader, layout)
        return SparseTensor(layout.shape, mask, levels, layout.bits)

    def estimate_bytes(self, stats: SparseStats) -> int:
        """Returns the exact size."""
        return stats.layout.mask_bytes + packed_bytes(stats.layout.kept, stats.layout.bits)
