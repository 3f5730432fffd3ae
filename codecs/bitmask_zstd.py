"""`bitmask-zstd`: the mask of `bitmask` in a zstandard frame, for densities of 0.2 to 0.5."""

from dataclasses import dataclass
from typing import ClassVar, Self

from flexswitch.codecs.bits import pack_levels, packed_bytes, unpack_mask
from flexswitch.codecs.codec import PayloadReader, check_block, check_kept, take_level_plane
from flexswitch.codecs.huffman import byte_counts, frame_bytes
from flexswitch.codecs.masks import count_bits
from flexswitch.codecs.sparse import SparseLayout, SparseStats, SparseTensor
from flexswitch.codecs.zstd import zstd_compress, zstd_decompress

_REPEATS = 4.45, 0.07


@dataclass(frozen=True)
class BitmaskZstd:
    """Levels, then the mask in a frame."""

    name: ClassVar[str] = "bitmask-zstd"
    fast: ClassVar[bool] = True

    @classmethod
    def fitted(cls, stats: SparseStats) -> Self:
        """Returns the codec, which has no settings."""
        return cls()

    def encode(self, sparse: SparseTensor) -> bytes:
        """Returns the levels, then the frame."""
        check_block(sparse.layout, ValueError)
        return pack_levels(sparse.levels, sparse.bits) + zstd_compress(sparse.mask.tobytes())

    def decode(self, data: bytes, layout: SparseLayout) -> SparseTensor:
        """Returns the tensor. Raises: DecodeError."""
        check_block(layout)
        reader = PayloadReader(data)
        levels = take_level_plane(reader, layout)
        mask = unpack_mask(zstd_decompress(reader.rest(), layout.mask_bytes), layout.entries)
        check_kept(count_bits(mask), layout)
        return SparseTensor(layout.shape, mask, levels, layout.bits)

    def estimate_bytes(self, stats: SparseStats) -> int:
        """Returns an estimate: the size of a frame is known only after compression."""
        counts = byte_counts(stats.sparse.mask)
        return frame_bytes(counts, *_REPEATS) + packed_bytes(stats.layout.kept, stats.layout.bits)
