"""Laws that every registered codec keeps."""

import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sparse_tensors import (
    BITS,
    FEW,
    FRAMED,
    LAWS,
    ONE_FORM,
    SETTINGS,
    assert_same,
    assert_valid,
    codec_id,
    every_codec,
    positions,
    sparse_tensor,
    sparse_tensors,
)

from flexswitch.codecs.codec import Codec, decoded_entries
from flexswitch.codecs.context import Context
from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.registry import CODECS, get_codec
from flexswitch.codecs.rice import Rice
from flexswitch.codecs.sparse import (
    MAX_BLOCK_ENTRIES,
    SparseLayout,
    SparseStats,
    SparseTensor,
)

# These code a block of 2^20 entries at once, the others tensors of any size.
BLOCK_CODECS = [codec for codec in every_codec() if codec.name in (*FRAMED, "rice", "context")]

each_codec = pytest.mark.parametrize("codec", every_codec(), ids=codec_id)


@each_codec
@LAWS
@given(sparse=sparse_tensors())
def test_decoding_undoes_encoding(codec: Codec, sparse: SparseTensor) -> None:
    assert_same(codec.decode(codec.encode(sparse), sparse.layout), sparse)


@each_codec
@LAWS
@given(sparse=sparse_tensors())
def test_the_entries_are_those_of_the_decoded_tensor(codec: Codec, sparse: SparseTensor) -> None:
    found, levels = decoded_entries(codec, codec.encode(sparse), sparse.layout)
    assert found.tolist() == positions(sparse)
    assert np.array_equal(levels, sparse.levels)
    assert levels.dtype == sparse.levels.dtype


@each_codec
@LAWS
@given(sparse=sparse_tensors())
def test_encoding_leaves_its_input_as_it_is(codec: Codec, sparse: SparseTensor) -> None:
    before = SparseTensor(sparse.shape, sparse.mask.copy(), sparse.levels.copy(), sparse.bits)
    sparse.mask.setflags(write=False)
    sparse.levels.setflags(write=False)
    data = codec.encode(sparse)
    assert_same(sparse, before)
    assert codec.encode(sparse) == data
    assert type(data) is bytes


@each_codec
@LAWS
@given(sparse=sparse_tensors())
def test_the_estimate_is_the_encoded_size(codec: Codec, sparse: SparseTensor) -> None:
    estimate = codec.estimate_bytes(SparseStats(sparse))
    assert codec.name in FRAMED or estimate == len(codec.encode(sparse))


@pytest.mark.parametrize(
    ("name", "density"),
    [("gaps-zstd", share) for share in (0.003, 0.01, 0.03, 0.1, 0.2)]
    + [("bitmask-zstd", share) for share in (0.2, 0.3, 0.4, 0.5)],
)
@pytest.mark.parametrize("bits", [0, 2])
def test_the_estimate_of_a_frame_is_close_on_scattered_masks(name: str, density: float, bits: int) -> None:
    for seed, shape in enumerate([(1000, 100), (7, 11, 1301), (400, 2600)]):
        sparse, codec = scattered(shape, density, bits, seed), get_codec(name)()
        size = len(codec.encode(sparse))
        assert abs(codec.estimate_bytes(SparseStats(sparse)) - size) <= 0.02 * size + 64


@each_codec
@FEW
@given(sparse=sparse_tensors(largest=60), extension=st.binary(min_size=1, max_size=9))
def test_data_cut_short_or_grown_raises_a_decode_error(
    codec: Codec, sparse: SparseTensor, extension: bytes
) -> None:
    data = codec.encode(sparse)
    for damaged in [data[:length] for length in range(len(data))] + [data + extension, data + b"\0"]:
        with pytest.raises(DecodeError):
            codec.decode(damaged, sparse.layout)


@each_codec
@FEW
@given(sparse=sparse_tensors(largest=40))
def test_a_flipped_bit_raises_a_decode_error_or_gives_a_valid_tensor(
    codec: Codec, sparse: SparseTensor
) -> None:
    data = codec.encode(sparse)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        decode_or_refuse(codec, bytes(flipped), sparse.layout)


@each_codec
@LAWS
@given(
    data=st.binary(max_size=80),
    shape=st.lists(st.integers(0, 30), min_size=1, max_size=2),
    share=st.floats(0, 1),
    bits=st.sampled_from(BITS),
)
def test_any_bytes_raise_a_decode_error_or_give_a_valid_tensor(
    codec: Codec, data: bytes, shape: list[int], share: float, bits: int
) -> None:
    decode_or_refuse(codec, data, SparseLayout(tuple(shape), round(share * math.prod(shape)), bits))


@each_codec
@LAWS
@given(sparse=sparse_tensors(largest=200), other=sparse_tensors(largest=200))
def test_bytes_under_another_layout_raise_a_decode_error_or_give_a_valid_tensor(
    codec: Codec, sparse: SparseTensor, other: SparseTensor
) -> None:
    data, layout = codec.encode(sparse), sparse.layout
    decode_or_refuse(codec, data, other.layout)
    for kept in {layout.kept - 1, layout.kept + 1} & set(range(layout.entries + 1)):
        with pytest.raises(DecodeError):
            codec.decode(data, SparseLayout(layout.shape, kept, layout.bits))


@each_codec
def test_huge_layouts_are_refused_before_memory_is_taken(codec: Codec) -> None:
    data = codec.encode(sparse_tensor((40,), [3, 4], [1, 0], 1))
    for shape in [(1 << 62,), (1 << 40, 1 << 40), (41 << 40,)]:
        for kept in (2, 1 << 40):
            with pytest.raises(DecodeError):
                codec.decode(data, SparseLayout(shape, kept, 1))


@each_codec
def test_more_kept_entries_than_entries_are_refused(codec: Codec) -> None:
    with pytest.raises(DecodeError):
        codec.decode(b"", SparseLayout((40,), 1 << 40, 0))


@each_codec
@pytest.mark.parametrize("shape", [(0,), (3, 0, 5), (0, 3), (1 << 40, 0), (0, 1 << 62, 2)])
def test_a_tensor_without_entries_is_stored(codec: Codec, shape: tuple[int, ...]) -> None:
    empty = sparse_tensor(shape, [], [], 4)
    data = codec.encode(empty)
    assert_same(codec.decode(data, empty.layout), empty)
    with pytest.raises(DecodeError):
        codec.decode(data + b"\0", empty.layout)


@pytest.mark.parametrize("name", CODECS)
@LAWS
@given(sparse=sparse_tensors())
def test_the_fitted_settings_are_never_larger_than_others(name: str, sparse: SparseTensor) -> None:
    stats, others = SparseStats(sparse), [codec for codec in every_codec() if codec.name == name]
    if name == "rice":
        others = [Rice(remainder) for remainder in range(21)]
    if name == "context":  # two steps apart, since the tries take as long as the coding itself
        others = [Context(patterns) for patterns in (1, 4, 16)]
    sizes = [codec.estimate_bytes(stats) for codec in others]
    fitted = get_codec(name).fitted(stats)
    assert fitted in others
    assert fitted.estimate_bytes(stats) == min(sizes)


def test_rice_takes_the_best_remainder_of_a_cluster_too() -> None:
    run = sparse_tensor((1 << 20,), list(range(1000)), [0] * 1000, 0)
    assert Rice.fitted(SparseStats(run)) == Rice(0)


@pytest.mark.parametrize("name", FRAMED)
def test_codecs_with_a_frame_have_no_settings_to_fit(name: str) -> None:
    assert get_codec(name).fitted(SparseStats(sparse_tensor((9,), [3], [1], 1))) == get_codec(name)()


@pytest.mark.parametrize("codec", BLOCK_CODECS, ids=codec_id)
def test_tensors_of_more_than_a_block_are_refused(codec: Codec) -> None:
    full, larger = (sparse_tensor((MAX_BLOCK_ENTRIES + more,), [5], [0], 0) for more in (0, 1))
    data = codec.encode(full)
    assert_same(codec.decode(data, full.layout), full)
    with pytest.raises(ValueError, match=r"^1048577 entries, expected 1048576 at most$"):
        codec.encode(larger)
    with pytest.raises(DecodeError, match=r"^1048577 entries, expected 1048576 at most$"):
        codec.decode(data, larger.layout)


def test_a_codec_is_fast_or_not() -> None:
    assert {name for name, codec in CODECS.items() if codec.fast} == {
        *("bitmask", "bitmask-zstd", "gaps-zstd", "rice")
    }


def test_every_codec_with_settings_lists_them_for_these_tests() -> None:
    with_settings = {name for name, codec in CODECS.items() if fields(codec)}  # type: ignore[arg-type]
    assert with_settings == set(SETTINGS)


def test_codecs_are_registered_under_their_names() -> None:
    assert {name: codec.name for name, codec in CODECS.items()} == {name: name for name in CODECS}


def scattered(shape: tuple[int, ...], density: float, bits: int, seed: int) -> SparseTensor:
    """Returns a tensor that keeps each entry with that chance, whatever its neighbours are."""
    generator = np.random.default_rng(seed)
    marked = generator.random(math.prod(shape)) < density
    levels = generator.integers(1 << bits, size=int(np.count_nonzero(marked)), dtype=np.uint8)
    return SparseTensor(shape, np.packbits(marked, bitorder="little"), levels, bits)


def decode_or_refuse(codec: Codec, data: bytes, layout: SparseLayout) -> None:
    """Fails where wrong bytes end otherwise than in a DecodeError or a valid tensor."""
    try:
        found = codec.decode(data, layout)
    except DecodeError:
        return
    assert_valid(found, layout)
    if codec.name in ONE_FORM:
        assert codec.encode(found) == data
