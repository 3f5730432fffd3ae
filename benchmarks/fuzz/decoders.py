"""The fuzzing target of all decoders, for python benchmarks/fuzz/run.py: any bytes with any layout.

The first 15 bytes of an input choose the codec and its settings, the bits of a level, the shape and the
number of kept entries. The rest is the payload or, in half of the inputs, describes how to damage a valid
payload.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from outcomes import FindingError

from flexswitch.codecs.codec import Codec, decoded_entries
from flexswitch.codecs.registry import CODECS
from flexswitch.codecs.sparse import GROUP_SIZES, LEVEL_DTYPES, SparseLayout, SparseTensor

SETTINGS = {
    "rice": [{"remainder": width} for width in range(21)],
    "context": [{"patterns": count} for count in (1, 2, 4, 8, 16)],
    "grouped-coo": [{"group": size} for size in GROUP_SIZES],
}
CHOICES: list[Codec] = [
    codec(**chosen) for name, codec in CODECS.items() for chosen in SETTINGS.get(name, [{}])
]
BITS = tuple(LEVEL_DTYPES)
# The encoding of a tensor is unique in these codecs.
ONE_FORM = ("bitmask", "rice", "grouped-coo", "flag4", "raw")
HEAD_BYTES = 15


@dataclass(frozen=True)
class Case:
    """The meaning of an input."""

    codec: Codec
    layout: SparseLayout
    payload: bytes


def target(data: bytes) -> None:
    """Decodes an input. Raises: FlexswitchError if it is refused, FindingError on a violated invariant."""
    case = case_of(data)
    layout = case.layout
    sparse = case.codec.decode(case.payload, layout)
    check_tensor(sparse, layout)
    positions, levels = decoded_entries(case.codec, case.payload, layout)
    marked = np.unpackbits(sparse.mask, count=layout.entries, bitorder="little")
    if not np.array_equal(np.flatnonzero(marked), positions) or not np.array_equal(levels, sparse.levels):
        raise FindingError("its entries are not those of the decoded tensor")
    check_again(case.codec, sparse)
    if case.codec.name in ONE_FORM and case.codec.encode(sparse) != case.payload:
        raise FindingError("a second form of the same tensor is accepted")


def check_tensor(sparse: SparseTensor, layout: SparseLayout) -> None:
    """Raises: FindingError if a tensor violates an invariant that `SparseTensor` does not check itself."""
    if sparse.layout != layout:
        raise FindingError(f"{sparse.layout}, expected {layout}")
    if layout.entries % 8 and sparse.mask[-1] >> layout.entries % 8:
        raise FindingError("a bit is set after the last entry")
    if layout.bits < 8 and sparse.levels.size and int(sparse.levels.max()) >> layout.bits:
        raise FindingError("a level has too many bits")


def check_again(codec: Codec, sparse: SparseTensor) -> None:
    """Raises: FindingError if encoding and decoding a tensor again changes it."""
    again = codec.decode(codec.encode(sparse), sparse.layout)
    if not np.array_equal(again.mask, sparse.mask) or not np.array_equal(again.levels, sparse.levels):
        raise FindingError("encoding and decoding the tensor again changes it")


def case_of(data: bytes) -> Case:
    """Returns the meaning of an input; missing bytes are zeros."""
    head, rest = data[:HEAD_BYTES].ljust(HEAD_BYTES, b"\0"), data[HEAD_BYTES:]
    codec, bits, shape = CHOICES[head[0] % len(CHOICES)], BITS[head[1] % len(BITS)], shape_of(head[3:8])
    number = int.from_bytes(head[8:12], "little")
    if not head[2] & 1:
        return Case(codec, SparseLayout(shape, number % (math.prod(shape) + 1), bits), rest)
    sparse = scattered(shape, bits, (head[12] / 255) ** 3, number)
    payload, layout = bytearray(codec.encode(sparse)), sparse.layout
    kept = min(max(layout.kept + (0, 0, 0, 0, 0, 0, 1, -1)[head[13] & 7], 0), layout.entries)
    for start in range(0, len(rest) - 3, 4):
        damage(payload, rest[start], int.from_bytes(rest[start + 1 : start + 3], "little"), rest[start + 3])
    return Case(
        codec,
        SparseLayout(shape, kept, BITS[head[14] % len(BITS)] if head[14] > 250 else bits),
        bytes(payload),
    )


def shape_of(head: bytes) -> tuple[int, ...]:
    """Returns a shape of at most 2^20 entries; all orders of magnitude are equally likely."""
    head = head.ljust(5, b"\0")
    entries = int.from_bytes(head[1:4], "little") % ((1 << head[0] % 21) + 1)
    columns = max(1, round(max(1, entries) ** (head[4] / 255)))
    shapes: list[tuple[int, ...]] = [(entries,), (entries // columns, columns), (columns, entries // columns)]
    return [*shapes, (entries // columns, columns, 1)][head[0] // 21 % 4]


def scattered(shape: tuple[int, ...], bits: int, density: float, seed: int) -> SparseTensor:
    """Returns a random tensor."""
    generator = np.random.default_rng(seed)
    marked = generator.random(math.prod(shape), np.float32) < density
    kept = int(np.count_nonzero(marked))
    levels = generator.integers(bits >= 16, 1 << bits, kept, np.uint64).astype(LEVEL_DTYPES[bits])
    return SparseTensor(shape, np.packbits(marked, bitorder="little"), levels, bits)


def damage(payload: bytearray, action: int, place: int, value: int) -> None:
    """Changes a payload at one position: flips a bit, changes, inserts or removes a byte, or truncates it."""
    place = place * max(1, len(payload)) >> 16 if action & 8 else place
    if place >= len(payload):
        payload.append(value)
    elif action % 8 < 3:
        payload[place] ^= 1 << value % 8
    elif action % 8 < 5:
        payload[place] = value
    elif action % 8 == 5:
        payload.insert(place, value)
    elif action % 8 == 6:
        del payload[place]
    else:
        del payload[place:]


def valid(codec: int, bits: int, draw: random.Random) -> bytes:
    """Returns an input with the valid payload of a small tensor. codec, bits: indices of the choices."""
    shape = b""
    while not math.prod(shape_of(shape)):
        shape = bytes([21 * draw.randrange(4) + draw.randrange(13)]) + draw.randbytes(4)
    sparse = scattered(shape_of(shape), BITS[bits], draw.random() ** 3, draw.randrange(1 << 32))
    head = bytes([codec, bits, 0]) + shape + len(sparse.levels).to_bytes(4, "little") + bytes(3)
    return head + CHOICES[codec].encode(sparse)


def seeds() -> Iterator[bytes]:
    """Yields the initial inputs: two for each codec and bit width, one with a payload and one without."""
    draw = random.Random(0)
    for codec in range(len(CHOICES)):
        for bits in range(len(BITS)):
            yield valid(codec, bits, draw)
            yield bytes([codec, bits, 1, 21 * draw.randrange(4) + 9]) + draw.randbytes(9) + bytes(2)


def mutate(data: bytes, draw: random.Random, change: Callable[[bytes], bytes]) -> bytes:
    """Returns an input with another head, or a new valid input, or the input after `change`.

    The fuzzer alone would keep only the smallest inputs, because it does not see compiled branches.
    """
    action = draw.randrange(4)
    if action == 0:
        return draw.randbytes(HEAD_BYTES) + data[HEAD_BYTES:]
    if action == 1:
        return change(valid(draw.randrange(len(CHOICES)), draw.randrange(len(BITS)), draw))
    return change(data)
