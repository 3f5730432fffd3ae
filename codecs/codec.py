"""The protocol of a codec: how a sparse tensor becomes named parts of bytes, and back."""

from collections.abc import Mapping
from typing import ClassVar, Protocol, Self, runtime_checkable

from flexswitch.codecs.bits import packed_bytes, unpack_levels
from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.masks import Positions, mask_positions
from flexswitch.codecs.sparse import BLOCK_ENTRIES, Levels, SparseLayout, SparseStats, SparseTensor


class Codec(Protocol):
    """A frozen dataclass whose fields are its settings; the container stores them beside its name.

    `decode` undoes `encode` exactly where `lossless`, and reads 2,000 M entries a second or more where
    `fast`. A name, once released, keeps its bytes.
    """

    name: ClassVar[str]
    lossless: ClassVar[bool]
    fast: ClassVar[bool]

    @classmethod
    def fitted(cls, stats: SparseStats) -> Self:
        """Returns the codec with the settings that store a tensor of these counts smallest."""

    def encode(self, sparse: SparseTensor) -> dict[str, bytes]:
        """Returns the tensor's parts; never changes its input."""

    def decode(self, parts: Mapping[str, bytes], layout: SparseLayout) -> SparseTensor:
        """Returns the tensor. Raises: DecodeError on parts that `encode` cannot have written."""

    def estimate_bytes(self, stats: SparseStats) -> int:
        """Returns the bytes of all parts that `encode` will write, exactly or within 2 %."""


@runtime_checkable
class EntryCodec(Protocol):
    """A codec that gives the kept positions at once, without a mask between."""

    def entries(self, parts: Mapping[str, bytes], layout: SparseLayout) -> tuple[Positions, Levels]:
        """Returns the rising flat positions of the kept entries and their levels. Raises: DecodeError."""


def decoded_entries(
    codec: Codec, parts: Mapping[str, bytes], layout: SparseLayout
) -> tuple[Positions, Levels]:
    """Returns a block's kept positions, flat and rising, and their levels. Raises: DecodeError."""
    if isinstance(codec, EntryCodec):
        return codec.entries(parts, layout)
    sparse = codec.decode(parts, layout)
    return mask_positions(sparse.mask, layout.kept), sparse.levels


class PartReader:
    """Takes a codec's fields one after the other from the one part that it writes.

    Each further part costs a line of the container's header, so fields whose lengths follow from what
    came before share the part `data`.
    """

    def __init__(self, parts: Mapping[str, bytes]) -> None:
        if set(parts) != {"data"}:
            raise DecodeError(f"parts {sorted(parts)}, expected ['data']")
        self._data = parts["data"]
        self._used = 0

    def take(self, size: int) -> bytes:
        """Returns the next `size` bytes. Raises: DecodeError where there are fewer."""
        if size > len(self._data) - self._used:
            raise DecodeError(f"{len(self._data)} bytes, expected at least {self._used + size}")
        self._used += size
        return self._data[self._used - size : self._used]

    def rest(self) -> bytes:
        """Returns all bytes that are left."""
        return self.take(len(self._data) - self._used)

    def finish(self) -> None:
        """Raises: DecodeError where bytes are left."""
        if self._used != len(self._data):
            raise DecodeError(f"{len(self._data)} bytes, expected {self._used}")


def take_levels(reader: PartReader, layout: SparseLayout) -> Levels:
    """Returns the levels that end a part. Raises: DecodeError."""
    levels = take_level_plane(reader, layout)
    reader.finish()
    return levels


def take_level_plane(reader: PartReader, layout: SparseLayout) -> Levels:
    """Returns the levels that stand next. Raises: DecodeError."""
    return unpack_levels(reader.take(packed_bytes(layout.kept, layout.bits)), layout.bits, layout.kept)


def check_block(layout: SparseLayout, error: type[Exception] = DecodeError) -> None:
    """Raises: `error` where a tensor is no block that such a codec codes at once."""
    if layout.kept > layout.entries:
        raise error(f"{layout.kept} of {layout.entries} entries are kept")
    if layout.entries > BLOCK_ENTRIES:
        raise error(f"{layout.entries} entries, expected {BLOCK_ENTRIES} at most")


def check_kept(found: int, layout: SparseLayout) -> None:
    """Raises: DecodeError where the bytes mark another number of entries than the container says."""
    if found != layout.kept:
        raise DecodeError(f"{found} entries are marked as kept, expected {layout.kept}")
