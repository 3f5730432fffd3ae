"""The protocol of a codec: turns a sparse tensor into bytes and back."""

from typing import ClassVar, Protocol, Self, runtime_checkable

from flexswitch.codecs.bits import packed_bytes, unpack_levels
from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.masks import Positions, mask_positions
from flexswitch.codecs.sparse import MAX_BLOCK_ENTRIES, Levels, SparseLayout, SparseStats, SparseTensor


class Codec(Protocol):
    """A frozen dataclass whose fields are its settings; the container stores them beside its name.

    `decode` is the exact inverse of `encode`. A codec is `fast` if it decodes at least 2,000 M entries a
    second. The bytes of a released name never change.
    """

    name: ClassVar[str]
    fast: ClassVar[bool]

    @classmethod
    def fitted(cls, stats: SparseStats) -> Self:
        """Returns the codec with the settings that give the smallest encoding."""

    def encode(self, sparse: SparseTensor) -> bytes:
        """Returns the encoded tensor. The input is not changed."""

    def decode(self, data: bytes, layout: SparseLayout) -> SparseTensor:
        """Returns the tensor.

        Raises: DecodeError if `encode` cannot have written the data.
        """

    def estimate_bytes(self, stats: SparseStats) -> int:
        """Returns the size of the encoding, exactly or within 2 %."""


@runtime_checkable
class EntryCodec(Protocol):
    """A codec that decodes to kept positions directly, without a mask."""

    def entries(self, data: bytes, layout: SparseLayout) -> tuple[Positions, Levels]:
        """Returns the flat positions of the kept entries, in rising order, and their levels.

        Raises: DecodeError.
        """


def decoded_entries(codec: Codec, data: bytes, layout: SparseLayout) -> tuple[Positions, Levels]:
    """Returns the flat positions of a block's kept entries, in rising order, and their levels.

    Raises: DecodeError.
    """
    if isinstance(codec, EntryCodec):
        return codec.entries(data, layout)
    sparse = codec.decode(data, layout)
    return mask_positions(sparse.mask, layout.kept), sparse.levels


class PayloadReader:
    """Reads the fields of an encoded tensor one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._used = 0

    def take(self, size: int) -> bytes:
        """Returns the next `size` bytes. Raises: DecodeError if there are fewer."""
        if size > len(self._data) - self._used:
            raise DecodeError(f"{len(self._data)} bytes, expected at least {self._used + size}")
        self._used += size
        return self._data[self._used - size : self._used]

    def rest(self) -> bytes:
        """Returns all remaining bytes."""
        return self.take(len(self._data) - self._used)

    def finish(self) -> None:
        """Raises: DecodeError if bytes remain."""
        if self._used != len(self._data):
            raise DecodeError(f"{len(self._data)} bytes, expected {self._used}")


def take_levels(reader: PayloadReader, layout: SparseLayout) -> Levels:
    """Returns the levels, which must be the last field. Raises: DecodeError."""
    levels = take_level_plane(reader, layout)
    reader.finish()
    return levels


def take_level_plane(reader: PayloadReader, layout: SparseLayout) -> Levels:
    """Returns the levels, which must be the next field. Raises: DecodeError."""
    return unpack_levels(reader.take(packed_bytes(layout.kept, layout.bits)), layout.bits, layout.kept)


def check_block(layout: SparseLayout, error: type[Exception] = DecodeError) -> None:
    """Raises: `error` if a tensor has more entries than a block, or keeps more entries than it has."""
    if layout.kept > layout.entries:
        raise error(f"{layout.kept} of {layout.entries} entries are kept")
    if layout.entries > MAX_BLOCK_ENTRIES:
        raise error(f"{layout.entries} entries, expected {MAX_BLOCK_ENTRIES} at most")


def check_kept(found: int, layout: SparseLayout) -> None:
    """Raises: DecodeError if the number of marked entries is not the one in the container."""
    if found != layout.kept:
        raise DecodeError(f"{found} entries are marked as kept, expected {layout.kept}")
