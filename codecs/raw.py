"""`raw`: one word per entry, 0 if it is dropped; for tensors that keep nearly all entries."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from flexswitch.codecs.codec import PayloadReader, check_kept
from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.sparse import LEVEL_DTYPES, SparseLayout, SparseStats, SparseTensor

# Quantised levels are stored plus one, so that 8 bits need the wider word.
_WORDS: dict[int, np.dtype[Any]] = {
    **dict.fromkeys(range(8), np.dtype(np.uint8)),
    8: np.dtype("<u2"),
    16: np.dtype("<u2"),
    32: np.dtype("<u4"),
}


@dataclass(frozen=True)
class Raw:
    """Words are level + 1 for quantised levels, and the bit pattern of the value for float levels."""

    name: ClassVar[str] = "raw"
    fast: ClassVar[bool] = False

    @classmethod
    def fitted(cls, stats: SparseStats) -> Self:
        """Returns the codec, which has no settings."""
        return cls()

    def encode(self, sparse: SparseTensor) -> bytes:
        """Returns the words."""
        entries = sparse.layout.entries
        words = np.zeros(entries, _WORDS[sparse.bits])
        marked = np.unpackbits(sparse.mask, count=entries, bitorder="little").view(np.bool_)
        offset = 1 if sparse.bits <= 8 else 0
        words[marked] = sparse.levels.astype(words.dtype) + words.dtype.type(offset)
        return words.tobytes()

    def decode(self, data: bytes, layout: SparseLayout) -> SparseTensor:
        """Returns the tensor. Raises: DecodeError."""
        reader = PayloadReader(data)
        word = _WORDS[layout.bits]
        words = np.frombuffer(reader.take(layout.entries * word.itemsize), word)
        reader.finish()
        marked = words != 0
        kept = words[marked]
        check_kept(len(kept), layout)
        if layout.bits <= 8:
            if kept.size and int(kept.max()) > 1 << layout.bits:
                raise DecodeError(f"level {int(kept.max()) - 1}, expected one below {1 << layout.bits}")
            kept = (kept - word.type(1)).astype(LEVEL_DTYPES[layout.bits])
        return SparseTensor(layout.shape, np.packbits(marked, bitorder="little"), kept, layout.bits)

    def estimate_bytes(self, stats: SparseStats) -> int:
        """Returns the exact size."""
        return stats.layout.entries * _WORDS[stats.layout.bits].itemsize
