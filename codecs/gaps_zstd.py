"""`gaps-zstd`: the numbers of dropped entries between kept ones as bytes, in a zstandard frame.

For densities of about 0.003 to 0.2. The byte 255 stands for 255 dropped entries and continues with the next
byte.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.bits import pack_levels, packed_bytes
from flexswitch.codecs.codec import PayloadReader, check_block, take_level_plane
from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.huffman import byte_counts, frame_bytes
from flexswitch.codecs.masks import ESCAPE, Positions, mask_of, positions_after_steps
from flexswitch.codecs.sparse import Levels, SparseLayout, SparseStats, SparseTensor
from flexswitch.codecs.zstd import zstd_compress, zstd_decompress

_REPEATS = 3.2, 0.18


@dataclass(frozen=True)
class GapsZstd:
    """Levels, then the gaps in a frame."""

    name: ClassVar[str] = "gaps-zstd"
    fast: ClassVar[bool] = True

    @classmethod
    def fitted(cls, stats: SparseStats) -> Self:
        """Returns the codec, which has no settings."""
        return cls()

    def encode(self, sparse: SparseTensor) -> bytes:
        """Returns the levels, then the frame."""
        check_block(sparse.layout, ValueError)
        steps = _gap_bytes(sparse.gaps)
        return pack_levels(sparse.levels, sparse.bits) + zstd_compress(steps.tobytes())

    def decode(self, data: bytes, layout: SparseLayout) -> SparseTensor:
        """Returns the tensor. Raises: DecodeError."""
        positions, levels = self.entries(data, layout)
        return SparseTensor(layout.shape, mask_of(positions, layout.entries), levels, layout.bits)

    def entries(self, data: bytes, layout: SparseLayout) -> tuple[Positions, Levels]:
        """Returns the kept positions and their levels. Raises: DecodeError."""
        check_block(layout)
        reader = PayloadReader(data)
        levels = take_level_plane(reader, layout)
        most = layout.kept + layout.entries // ESCAPE
        steps = np.frombuffer(zstd_decompress(reader.rest(), most), np.uint8)
        positions = positions_after_steps(steps, layout.kept, layout.entries)
        if positions is None:
            raise DecodeError(f"the gaps do not lead to {layout.kept} of {layout.entries} entries")
        return positions, levels

    def estimate_bytes(self, stats: SparseStats) -> int:
        """Returns an estimate: the size of a frame is known only after compression."""
        counts = byte_counts(_gap_bytes(stats.sparse.gaps))
        return frame_bytes(counts, *_REPEATS) + packed_bytes(stats.layout.kept, stats.layout.bits)


def _gap_bytes(gaps: NDArray[np.uint32]) -> NDArray[np.uint8]:
    if not gaps.size or int(gaps.max()) < ESCAPE:
        return gaps.astype(np.uint8)
    ends = np.cumsum(gaps // np.uint32(ESCAPE) + np.uint32(1), dtype=np.int64)  # (kept,)
    steps = np.full(ends[-1], ESCAPE, np.uint8)
    steps[ends - 1] = gaps % np.uint32(ESCAPE)
    return steps
