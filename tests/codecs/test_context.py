"""The stream of `context`: a plain decoder from FORMAT.md's words, and what the model gains and loses."""

import math
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from support.sparse_tensors import FEW, assert_same, sparse_tensors

from flexswitch.codecs.context import Context
from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.sparse import LEVEL_DTYPES, FloatArray, SparseStats, SparseTensor, shannon_bits

# A plain decoder: whole numbers, struct and single operations on float32


class DamagedError(Exception):
    """The stream does not end as it must."""


class Chance:
    """A context: the chance of a 1 and the number of bits it has seen."""

    def __init__(self, chance: int = 2**27, seen: int = 0) -> None:
        self.chance, self.seen = chance, seen

    @property
    def coded(self) -> int:
        return min(max(self.chance // 2**13, 1), 2**15 - 1)

    def learn(self, bit: int) -> None:
        self.chance += (bit * 2**28 - self.chance) * (2**16 // (self.seen + 2)) // 2**16
        self.seen = min(self.seen + 1, 510)


class RangeDecoder:
    def __init__(self, stream: bytes) -> None:
        if len(stream) < 5 or len(stream) % 2 == 0:
            raise DamagedError
        self.state = int.from_bytes(stream[:5], "big")
        self.words = struct.iter_unpack(">H", stream[5:])
        if self.state < 2**24:
            raise DamagedError

    def bit(self, context: Chance) -> int:
        share, place, high = context.coded, self.state % 2**15, self.state // 2**15
        bit = int(place < share)
        self.state = share * high + place if bit else (2**15 - share) * high + place - share
        if self.state < 2**24:
            word = next(self.words, None)
            if word is None:
                raise DamagedError
            self.state = self.state * 2**16 + word[0]
        context.learn(bit)
        return bit

    def tree(self, contexts: list[Chance], depth: int) -> int:
        node = 1
        for _ in range(depth):
            node = 2 * node + self.bit(contexts[node])
        return node - 2**depth

    def finish(self) -> None:
        if self.state != 2**24 or next(self.words, None) is not None:
            raise DamagedError


def new_contexts(count: int) -> list[Chance]:
    return [Chance() for _ in range(count)]


def float_of(pattern: int) -> np.float32:
    return np.float32(struct.unpack("<f", struct.pack("<I", pattern))[0])


def pattern_of(value: np.float32) -> int:
    (pattern,) = struct.unpack("<I", struct.pack("<f", value))
    return int(pattern)


def mask_contexts() -> list[Chance]:
    middles = [float_of((index + 452) * 2**21 + 2**20) for index in range(64)]
    return [Chance(math.floor(np.float32(2**28) * min(z, np.float32(0.9))), 8) for z in middles]


def plain_decode(
    stream: bytes, rows: int, columns: int, bits: int, patterns: int
) -> tuple[list[int], list[int]]:
    """Returns the kept positions, and where 1 ≤ bits ≤ 8 their levels. Raises: DamagedError."""
    one, reader = np.float32(1), RangeDecoder(stream)
    classes, choices, polarity, masks = new_contexts(64), new_contexts(16), Chance(), mask_contexts()
    agreements, magnitudes = new_contexts(32), new_contexts(128)
    kept_all, density_all = [np.float32(0)] * columns, np.float32(0)
    kept_alike = [[np.float32(0)] * columns for _ in range(patterns)]
    density_alike = [np.float32(0)] * patterns
    votes = [[0] * columns for _ in range(patterns)]
    found: list[int] = []
    levels: list[int] = []
    for row in range(rows):
        row_class = reader.tree(classes, 6)
        if row_class == 0:
            continue
        pattern = reader.tree(choices, int(math.log2(patterns)))
        turned = -1 if 1 <= bits <= 8 and reader.bit(polarity) else 1
        exponent, half = divmod(row_class - 1, 2)
        density = np.float32(2**exponent * (1.25 + half / 2)) / np.float32(columns)
        kept = []
        for column in range(columns):
            share = (kept_all[column] + one) / (density_all + one)
            alike = (kept_alike[pattern][column] + np.float32(6) * share) / (
                density_alike[pattern] + np.float32(6)
            )
            context = min(max(pattern_of(density * alike) // 2**21 - 452, 0), 63)
            if reader.bit(masks[context]):
                kept.append(column)
        for column in kept:
            kept_all[column] += one
            kept_alike[pattern][column] += one
        density_all += density
        density_alike[pattern] += density
        found += [row * columns + column for column in kept]
        if not 1 <= bits <= 8:
            continue
        signs = []
        for column in kept:
            vote = votes[pattern][column]
            as_foretold = reader.bit(agreements[min(abs(vote), 31)])
            foretold = 1 if vote * turned >= 0 else -1
            signs.append(foretold if as_foretold else -foretold)
        for column, sign in zip(kept, signs, strict=True):
            votes[pattern][column] += sign * turned
        nodes = [1] * len(kept)
        for _ in range(bits - 1):
            nodes = [2 * node + reader.bit(magnitudes[node]) for node in nodes]
        half_levels = 2 ** (bits - 1)
        for sign, node in zip(signs, nodes, strict=True):
            magnitude = node - half_levels
            levels.append(half_levels + magnitude if sign > 0 else half_levels - 1 - magnitude)
    reader.finish()
    return found, levels


def plain_tensor(data: bytes, shape: tuple[int, ...], kept: int, bits: int, patterns: int) -> SparseTensor:
    """Returns what a block of `context` holds. Raises: DamagedError."""
    rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, shape[0])
    plain = kept * bits // 8 if bits >= 16 else 0
    if len(data) < plain or (not kept and data):
        raise DamagedError
    found, levels = plain_decode(data[plain:], rows, columns, bits, patterns) if kept else ([], [])
    if bits >= 16:
        width = bits // 8
        levels = [int.from_bytes(data[start : start + width], "little") for start in range(0, plain, width)]
    if len(found) != kept or (bits >= 16 and 0 in levels):
        raise DamagedError
    marked = np.zeros(rows * columns, np.bool_)
    marked[found] = True
    values = np.array(levels if bits else [0] * kept, LEVEL_DTYPES[bits])
    return SparseTensor(shape, np.packbits(marked, bitorder="little"), values, bits)


# Matrices


def matrix(
    shape: tuple[int, int], bits: int, share: float | FloatArray, directions: int, seed: int
) -> SparseTensor:
    """Returns a matrix that keeps entries by chance, its signs those of a product of few directions.

    share: the chance of each entry, or one that broadcasts. With no directions any sign is as likely.
    """
    generator = np.random.default_rng(seed)
    kept = generator.random(shape) < share  # (row, column)
    product = 0.3 * generator.normal(size=shape)
    if directions:
        product += generator.normal(size=(shape[0], directions)) @ generator.normal(
            size=(directions, shape[1])
        )
    if bits >= 16:
        levels = product.astype(np.float32).view(np.uint32) >> (32 - bits)
    else:
        half = 1 << max(bits - 1, 0)
        magnitudes = np.minimum(generator.exponential(half / 4, shape).astype(np.int64), half - 1)
        levels = np.where(product > 0, half + magnitudes, half - 1 - magnitudes) if bits else kept * 0
    return SparseTensor(
        shape, np.packbits(kept, bitorder="little"), levels[kept].astype(LEVEL_DTYPES[bits]), bits
    )


def shares(kind: str, shape: tuple[int, int]) -> float | FloatArray:
    """Returns how likely the entries are kept in a kind of matrix."""
    generator = np.random.default_rng(1)
    if kind == "rows and columns that differ":
        return np.outer(generator.random(shape[0]) ** 3, generator.random(shape[1])).astype(np.float32)
    if kind == "empty rows":
        return (0.2 * (generator.random((shape[0], 1)) < 0.4)).astype(np.float32)
    return {"scattered": 0.1, "dense": 0.7, "all": 1.0, "few": 0.003}[kind]


BITS_AND_DIRECTIONS = [(bits, directions) for bits in (0, 1, 2, 4, 8, 16, 32) for directions in (0, 2)]


@pytest.mark.parametrize(("bits", "directions"), BITS_AND_DIRECTIONS)
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("scattered", (60, 40)),
        ("rows and columns that differ", (40, 60)),
        ("empty rows", (50, 50)),
        ("dense", (1, 3000)),
        ("dense", (700, 1)),
        ("few", (30, 100)),
        ("all", (130, 50)),
    ],
)
def test_the_plain_decoder_reads_what_is_written(
    kind: str, shape: tuple[int, int], bits: int, directions: int
) -> None:
    patterns = (1, 2, 4, 8, 16)[(bits + directions + shape[0]) % 5]
    sparse = matrix(shape, bits, shares(kind, shape), directions, seed=bits)
    data = Context(patterns).encode(sparse)
    assert_same(plain_tensor(data, shape, len(sparse.levels), bits, patterns), sparse)
    assert_same(Context(patterns).decode(data, sparse.layout), sparse)


@pytest.mark.parametrize("patterns", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("bits", [0, 1, 4, 16])
def test_the_plain_decoder_reads_any_number_of_patterns(bits: int, patterns: int) -> None:
    sparse = matrix((48, 70), bits, 0.3, 3, seed=patterns)
    data = Context(patterns).encode(sparse)
    assert_same(plain_tensor(data, (48, 70), len(sparse.levels), bits, patterns), sparse)


@FEW
@given(sparse=sparse_tensors(largest=300))
def test_the_plain_decoder_reads_tensors_of_any_shape(sparse: SparseTensor) -> None:
    data = Context(4).encode(sparse)
    assert_same(plain_tensor(data, sparse.shape, len(sparse.levels), sparse.bits, 4), sparse)


@pytest.mark.parametrize("bits", [0, 2, 16])
def test_a_damaged_stream_is_read_or_refused_as_by_the_plain_decoder(bits: int) -> None:
    sparse = matrix((12, 9), bits, 0.3, 2, seed=5)
    data, layout = Context(4).encode(sparse), sparse.layout
    generator, read = np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(data)
        damaged[generator.integers(len(data))] ^= 1 << generator.integers(8)
        damaged = damaged[: generator.choice([len(data), generator.integers(len(data))], p=[0.8, 0.2])]
        try:
            expected = plain_tensor(bytes(damaged), (12, 9), layout.kept, bits, 4)
        except DamagedError:
            with pytest.raises(DecodeError):
                Context(4).decode(bytes(damaged), layout)
        else:
            assert_same(Context(4).decode(bytes(damaged), layout), expected)
            read += 1
    assert read >= (50 if bits == 16 else 0)  # of damaged floats, which stand as they are


# What the model gains and loses


def test_a_matrix_of_few_directions_is_stored_below_shannons_bound() -> None:
    sparse = matrix((512, 256), 1, 0.1, 2, seed=0)
    stats = SparseStats(sparse)
    codec = Context.fitted(stats)
    assert codec.patterns > 1
    assert codec.estimate_bytes(stats) < Context(1).estimate_bytes(stats)
    assert 8 * codec.estimate_bytes(stats) < shannon_bits(sparse.layout)


def test_one_direction_needs_one_pattern() -> None:
    sparse = matrix((512, 256), 1, 0.1, 1, seed=0)
    assert 8 * Context(1).estimate_bytes(SparseStats(sparse)) < 0.97 * shannon_bits(sparse.layout)


@pytest.mark.parametrize("bits", [0, 1, 2, 16])
@pytest.mark.parametrize("shape", [(256, 512), (512, 256), (1, 131072)])
def test_a_matrix_without_a_pattern_is_stored_within_three_percent_of_the_bound(
    shape: tuple[int, int], bits: int
) -> None:
    generator = np.random.default_rng(0)
    marked = generator.random(shape) < 0.1
    levels = generator.integers(bits >= 16, 1 << bits, np.count_nonzero(marked)).astype(LEVEL_DTYPES[bits])
    sparse = SparseTensor(shape, np.packbits(marked, bitorder="little"), levels, bits)
    bound = shannon_bits(sparse.layout)
    assert bound < 8 * Context(1).estimate_bytes(SparseStats(sparse)) < 1.03 * bound


def test_the_same_matrix_gives_the_same_bytes_on_any_thread() -> None:
    sparse = matrix((128, 96), 2, 0.2, 3, seed=7)
    expected = Context(8).encode(sparse)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: Context(8).encode(sparse), range(8))) == [expected] * 8
