"""Laws that every registered codec keeps, its bytes against a plain reference, and its golden bytes."""

import json
import math
import re
import struct
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from bitarray import bitarray
from bitarray.util import int2ba
from hypothesis import given
from hypothesis import strategies as st
from sparse_tensors import (
    BITS,
    FEW,
    LAWS,
    SETTINGS,
    assert_same,
    assert_valid,
    codec_id,
    every_codec,
    positions,
    sparse_tensor,
    sparse_tensors,
)

import flexswitch.codecs.registry
from flexswitch.codecs.codec import Codec
from flexswitch.codecs.errors import DecodeError, UsageError
from flexswitch.codecs.registry import CODECS, get_codec, stored_codec
from flexswitch.codecs.sparse import (
    GROUP_SIZES,
    SparseLayout,
    SparseTensor,
    level_values,
    sparse_stats,
)

GOLDEN = Path(__file__).parent / "golden"
FORMAT = Path(flexswitch.codecs.registry.__file__).with_name("FORMAT.md").read_text(encoding="utf-8")

each_codec = pytest.mark.parametrize("codec", every_codec(), ids=codec_id)


# Laws over the registry


@each_codec
@LAWS
@given(sparse=sparse_tensors())
def test_decoding_undoes_encoding(codec: Codec, sparse: SparseTensor) -> None:
    if codec.lossless:
        assert_same(codec.decode(codec.encode(sparse), sparse.layout), sparse)


@each_codec
@LAWS
@given(sparse=sparse_tensors())
def test_encoding_leaves_its_input_as_it_is(codec: Codec, sparse: SparseTensor) -> None:
    before = SparseTensor(sparse.shape, sparse.mask.copy(), sparse.levels.copy(), sparse.bits)
    sparse.mask.setflags(write=False)
    sparse.levels.setflags(write=False)
    parts = codec.encode(sparse)
    assert_same(sparse, before)
    assert codec.encode(sparse) == parts
    assert all(type(data) is bytes for data in parts.values())


@each_codec
@LAWS
@given(sparse=sparse_tensors())
def test_the_estimate_is_the_encoded_size(codec: Codec, sparse: SparseTensor) -> None:
    size = sum(map(len, codec.encode(sparse).values()))
    estimate = codec.estimate_bytes(sparse_stats(sparse))
    assert estimate == size if codec.name in REFERENCES else abs(estimate - size) <= 0.02 * size + 16


@each_codec
@FEW
@given(sparse=sparse_tensors(largest=60), extension=st.binary(min_size=1, max_size=9))
def test_a_part_cut_short_or_grown_raises_a_decode_error(
    codec: Codec, sparse: SparseTensor, extension: bytes
) -> None:
    parts = codec.encode(sparse)
    for part, data in parts.items():
        for damaged in [data[:length] for length in range(len(data))] + [data + extension, data + b"\0"]:
            with pytest.raises(DecodeError):
                codec.decode({**parts, part: damaged}, sparse.layout)


@each_codec
@FEW
@given(sparse=sparse_tensors(largest=40))
def test_a_flipped_bit_raises_a_decode_error_or_gives_a_valid_tensor(
    codec: Codec, sparse: SparseTensor
) -> None:
    parts = codec.encode(sparse)
    for part, data in parts.items():
        for bit in range(8 * len(data)):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            decode_or_refuse(codec, {**parts, part: bytes(flipped)}, sparse.layout)


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
    parts = dict.fromkeys(codec.encode(sparse_tensor((1,), [], [], 1)), data)
    decode_or_refuse(codec, parts, SparseLayout(tuple(shape), round(share * math.prod(shape)), bits))


@each_codec
@LAWS
@given(sparse=sparse_tensors(largest=200), other=sparse_tensors(largest=200))
def test_bytes_under_another_layout_raise_a_decode_error_or_give_a_valid_tensor(
    codec: Codec, sparse: SparseTensor, other: SparseTensor
) -> None:
    parts, layout = codec.encode(sparse), sparse.layout
    decode_or_refuse(codec, parts, other.layout)
    for kept in {layout.kept - 1, layout.kept + 1} & set(range(layout.entries + 1)):
        with pytest.raises(DecodeError):
            codec.decode(parts, SparseLayout(layout.shape, kept, layout.bits))


@each_codec
def test_huge_layouts_are_refused_before_memory_is_taken(codec: Codec) -> None:
    parts = codec.encode(sparse_tensor((40,), [3, 4], [1, 0], 1))
    for shape in [(1 << 62,), (1 << 40, 1 << 40), (41 << 40,)]:
        for kept in (2, 1 << 40):
            with pytest.raises(DecodeError):
                codec.decode(parts, SparseLayout(shape, kept, 1))


@each_codec
def test_wrong_part_names_raise_a_decode_error(codec: Codec) -> None:
    sparse = sparse_tensor((3, 3), [1, 5], [1, 0], 1)
    parts = codec.encode(sparse)
    first = next(iter(parts))
    wrong = [{}, {**parts, "more": b""}, {("x" + name): data for name, data in parts.items()}]
    wrong += [{name: data for name, data in parts.items() if name != first}]
    for names in wrong:
        with pytest.raises(DecodeError):
            codec.decode(names, sparse.layout)


@each_codec
@pytest.mark.parametrize("shape", [(0,), (3, 0, 5)])
def test_a_tensor_without_entries_is_stored(codec: Codec, shape: tuple[int, ...]) -> None:
    empty = sparse_tensor(shape, [], [], 4)
    assert_same(codec.decode(codec.encode(empty), empty.layout), empty)


@pytest.mark.parametrize("name", CODECS)
@LAWS
@given(sparse=sparse_tensors())
def test_the_fitted_settings_are_never_larger_than_others(name: str, sparse: SparseTensor) -> None:
    stats = sparse_stats(sparse)
    fitted = get_codec(name).fitted(stats)
    assert fitted in every_codec()
    others = [codec for codec in every_codec() if codec.name == name]
    assert fitted.estimate_bytes(stats) == min(codec.estimate_bytes(stats) for codec in others)


def test_every_codec_with_settings_lists_them_for_these_tests() -> None:
    with_settings = {name for name, codec in CODECS.items() if fields(codec)}  # type: ignore[arg-type]
    assert with_settings == set(SETTINGS)


def test_codecs_are_registered_under_their_names() -> None:
    assert {name: codec.name for name, codec in CODECS.items()} == {name: name for name in CODECS}


def decode_or_refuse(codec: Codec, parts: dict[str, bytes], layout: SparseLayout) -> None:
    """Fails where wrong bytes end otherwise than in a DecodeError or a valid tensor."""
    try:
        found = codec.decode(parts, layout)
    except DecodeError:
        return
    assert_valid(found, layout)
    if codec.name in REFERENCES:  # one tensor has one form: what decodes is what encode writes
        assert codec.encode(found) == parts


# The bytes, from FORMAT.md's words


def reference_fields(values: list[int], width: int) -> bytes:
    plane = bitarray(endian="little")
    for value in values:
        plane.extend(int2ba(value, width, endian="little"))
    return plane.tobytes()  # bitarray pads the last byte with zeros


def reference_bitmask(sparse: SparseTensor, kept: list[int]) -> bytes:
    entries = range(math.prod(sparse.shape))
    return reference_fields([int(entry in kept) for entry in entries], 1) + reference_levels(sparse)


def reference_grouped_coo(sparse: SparseTensor, kept: list[int], group: int) -> bytes:
    width = int(math.log2(group))
    groups = reference_groups(sparse, kept, group)
    return (
        reference_fields([int(bool(members)) for members in groups], 1)
        + reference_fields([len(members) - 1 for members in groups if members], width)
        + reference_fields([position % group for position in kept], width)
        + reference_levels(sparse)
    )


def reference_flag4(sparse: SparseTensor, kept: list[int]) -> bytes:
    groups = reference_groups(sparse, kept, 4)
    return (
        reference_fields([int(bool(members)) for members in groups], 1)
        + reference_fields(
            [sum(1 << position % 4 for position in members) for members in groups if members], 4
        )
        + reference_levels(sparse)
    )


def reference_raw(sparse: SparseTensor, kept: list[int]) -> bytes:
    width = {1: 8, 2: 8, 4: 8, 8: 16, 16: 16, 32: 32}[sparse.bits]
    words = [0] * math.prod(sparse.shape)
    for position, level in zip(kept, sparse.levels.tolist(), strict=True):
        words[position] = level + 1 if sparse.bits <= 8 else level
    return reference_fields(words, width)


def reference_groups(sparse: SparseTensor, kept: list[int], group: int) -> list[list[int]]:
    groups: list[list[int]] = [[] for _ in range(math.ceil(math.prod(sparse.shape) / group))]
    for position in kept:
        groups[position // group].append(position)
    return groups


def reference_levels(sparse: SparseTensor) -> bytes:
    return reference_fields(sparse.levels.tolist(), sparse.bits)


REFERENCES: dict[str, Callable[..., bytes]] = {
    "bitmask": reference_bitmask,
    "grouped-coo": reference_grouped_coo,
    "flag4": reference_flag4,
    "raw": reference_raw,
}


@pytest.mark.parametrize("codec", [each for each in every_codec() if each.name in REFERENCES], ids=codec_id)
@LAWS
@given(sparse=sparse_tensors(largest=700))
def test_the_bytes_are_those_of_the_plain_reference(codec: Codec, sparse: SparseTensor) -> None:
    expected = REFERENCES[codec.name](sparse, positions(sparse), **vars(codec))
    assert codec.encode(sparse) == {"data": expected}


# Golden bytes: tests/golden/write.py writes them once for a new codec, and they stay for ever


@pytest.mark.parametrize("name", CODECS)
def test_golden_bytes_decode_and_are_encoded_again(name: str) -> None:
    binary, cases = GOLDEN / f"{name}.bin", GOLDEN / f"{name}.json"
    assert binary.is_file(), f"no golden file of {name}; write it: cd tests && python -m golden.write {name}"
    data, used = binary.read_bytes(), 0
    for case in json.loads(cases.read_text()):
        codec = stored_codec(name, case["settings"])
        expected = sparse_tensor(tuple(case["shape"]), case["kept"], case["levels"], case["bits"])
        parts = {}
        for part, size in case["parts"].items():
            parts[part] = data[used : used + size]
            used += size
        assert_same(codec.decode(parts, expected.layout), expected)
        assert codec.encode(expected) == parts
    assert used == len(data)


@pytest.mark.parametrize("name", CODECS)
def test_golden_bytes_cover_every_setting_and_all_bits(name: str) -> None:
    cases = json.loads((GOLDEN / f"{name}.json").read_text())
    found = [(case["settings"], case["bits"]) for case in cases]
    assert found == [(chosen, bits) for chosen in SETTINGS.get(name, [{}]) for bits in BITS]


# FORMAT.md's worked example


def example_value(name: str) -> str:
    found = re.search(rf"^    {name} +(.+?)(?:  .*)?$", FORMAT, re.MULTILINE)
    assert found is not None, f"FORMAT.md's example has no line '{name}'"
    return found.group(1)


def example() -> SparseTensor:
    shape = tuple(map(int, example_value("shape").split(" × ")))
    kept, levels = (list(map(int, example_value(name).split())) for name in ("kept", "levels"))
    return sparse_tensor(shape, kept, levels, int(example_value("bits")))


def example_rows() -> dict[str, tuple[dict[str, int], bytes]]:
    """Returns the table of the example's bytes: codec name → settings and data."""
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| `(\{.*?\})` \| `([0-9a-f ]+)` \|", FORMAT, re.MULTILINE)
    return {name: (json.loads(chosen), bytes.fromhex(data)) for name, chosen, data in rows}


def test_the_worked_example_has_a_row_for_each_codec() -> None:
    assert set(example_rows()) == set(CODECS)


@pytest.mark.parametrize("name", CODECS)
def test_the_worked_example_has_the_bytes_that_are_written(name: str) -> None:
    chosen, data = example_rows()[name]
    codec = stored_codec(name, chosen)
    assert codec.encode(example()) == {"data": data}
    assert_same(codec.decode({"data": data}, example().layout), example())
    if name in REFERENCES:
        assert REFERENCES[name](example(), positions(example()), **chosen) == data


def test_the_worked_example_has_the_mask_and_the_values_that_are_read() -> None:
    marks = "".join(
        "1" if entry in positions(example()) else "0" for entry in range(example().layout.entries)
    )
    assert example_value("mask").replace(" ", "") == marks
    blocks = list(example().dense_blocks(float(example_value("scale"))))
    assert [float(value) for value in example_value("values").split()] == np.concatenate(blocks).tolist()


# Values


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@LAWS
@given(scale=st.floats(0, 2.0**100, width=32))
def test_quantised_levels_stand_for_evenly_spaced_values(bits: int, scale: float) -> None:
    levels = np.arange(1 << bits, dtype=np.uint8)
    expected = [np.float32(scale * (2 * level + 1 - 2**bits) / (2**bits - 1)) for level in range(1 << bits)]
    found = level_values(levels, bits, scale)
    assert found.dtype == np.float32
    assert found.tolist() == [float(value) for value in expected]
    assert found[0] == -scale
    assert found[-1] == scale


@pytest.mark.parametrize(("bits", "form"), [(16, "<H"), (32, "<I")])
@LAWS
@given(data=st.data())
def test_float_levels_are_the_value_itself(bits: int, form: str, data: st.DataObject) -> None:
    patterns = data.draw(st.lists(st.integers(1, (1 << bits) - 1), min_size=1, max_size=5))
    sparse = sparse_tensor((len(patterns),), list(range(len(patterns))), patterns, bits)
    expected = b"".join(struct.pack(form, pattern).rjust(4, b"\0") for pattern in patterns)
    assert level_values(sparse.levels, bits, 1.0).astype("<f4").tobytes() == expected


@LAWS
@given(sparse=sparse_tensors(largest=500), scale=st.sampled_from([0.0, 0.75, 1e-30, 3.0]))
def test_dense_blocks_hold_the_kept_values_and_zeros(sparse: SparseTensor, scale: float) -> None:
    values = level_values(sparse.levels, sparse.bits, scale)
    dense = np.zeros(sparse.layout.entries, np.float32)
    dense[positions(sparse)] = values
    for block_entries in (8, 64, 1 << 20):
        blocks = list(sparse.dense_blocks(scale, block_entries))
        lengths = [len(block) for block in blocks]
        assert all(length == block_entries for length in lengths[:-1])
        assert 0 < lengths[-1] <= block_entries
        assert np.concatenate(blocks).tobytes() == dense.tobytes()


@LAWS
@given(sparse=sparse_tensors())
def test_the_counts_are_those_of_the_mask(sparse: SparseTensor) -> None:
    stats = sparse_stats(sparse)
    assert stats.layout == sparse.layout
    assert stats.occupied == {
        size: len({position // size for position in positions(sparse)}) for size in GROUP_SIZES
    }


# What nobody may build


@pytest.mark.parametrize(
    ("mask", "levels", "bits", "message"),
    [
        ([1, 0], [1], 1, "mask (2,) or levels uint8 do not fit"),
        ([1], [1], 16, "mask (1,) or levels uint8 do not fit"),
        ([3], [1], 1, "the mask does not mark 1 entries"),
    ],
)
def test_a_tensor_whose_parts_do_not_fit_is_a_bug(
    mask: list[int], levels: list[int], bits: int, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SparseTensor((7,), np.array(mask, np.uint8), np.array(levels, np.uint8), bits)


def test_a_kept_float_of_the_pattern_zero_is_a_bug() -> None:
    with pytest.raises(ValueError, match=r"^a kept value has the bit pattern 0$"):
        sparse_tensor((4,), [0, 1], [0, 5], 16)


# Messages


@pytest.mark.parametrize(
    ("name", "chosen", "data", "layout", "message"),
    [
        ("bitmask", {}, "01", SparseLayout((9,), 1, 1), "1 bytes, expected at least 2"),
        ("bitmask", {}, "010001", SparseLayout((9,), 2, 1), "1 entries are marked as kept, expected 2"),
        ("bitmask", {}, "01000100", SparseLayout((9,), 1, 1), "4 bytes, expected 3"),
        ("bitmask", {}, "010201", SparseLayout((9,), 2, 1), "a bit is set behind the last entry"),
        ("bitmask", {}, "010002", SparseLayout((9,), 1, 1), "a bit is set behind the last value"),
        ("flag4", {}, "010000", SparseLayout((9,), 1, 1), "a flagged group keeps nothing"),
        ("flag4", {}, "040201", SparseLayout((9,), 1, 1), "a bit is set behind the last entry"),
        ("raw", {}, "000300", SparseLayout((3,), 1, 1), "level 2, expected one below 2"),
        ("raw", {}, "00000201", SparseLayout((2,), 1, 8), "level 257, expected one below 256"),
        (
            "grouped-coo",
            {"group": 4},
            "01010001",
            SparseLayout((9,), 2, 1),
            "kept positions do not rise, or lie behind the last entry",
        ),
        (
            "grouped-coo",
            {"group": 4},
            "04000101",
            SparseLayout((9,), 1, 1),
            "kept positions do not rise, or lie behind the last entry",
        ),
    ],
)
def test_wrong_bytes_are_told_in_words(
    name: str, chosen: dict[str, int], data: str, layout: SparseLayout, message: str
) -> None:
    with pytest.raises(DecodeError) as caught:
        stored_codec(name, chosen).decode({"data": bytes.fromhex(data)}, layout)
    assert str(caught.value) == message


def test_wrong_parts_are_told_in_words() -> None:
    with pytest.raises(DecodeError) as caught:
        stored_codec("raw", {}).decode({"mask": b"", "data": b""}, SparseLayout((1,), 0, 1))
    assert str(caught.value) == "parts ['data', 'mask'], expected ['data']"


def test_an_unknown_codec_is_named_with_the_nearest_one() -> None:
    known = ", ".join(CODECS)
    with pytest.raises(UsageError) as asked:
        get_codec("bitmsk")
    assert str(asked.value) == f"no codec is named 'bitmsk'; did you mean 'bitmask'? (known: {known})"
    with pytest.raises(DecodeError) as stored:
        stored_codec("arithmetic", {})
    expected = f"no codec is named 'arithmetic' (known: {known}); a newer flexswitch may know it"
    assert str(stored.value) == expected


@pytest.mark.parametrize("chosen", [{"group": 5}, {"group": 512}, {"grup": 4}, {"name": 4}])
def test_settings_that_a_codec_does_not_take_raise_a_decode_error(chosen: dict[str, int]) -> None:
    with pytest.raises(DecodeError) as caught:
        stored_codec("grouped-coo", chosen)
    assert str(caught.value).startswith(f"codec grouped-coo does not take the settings {chosen}: ")
