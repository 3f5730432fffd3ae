"""The codecs' bytes: against plain references from FORMAT.md's words, golden files, the worked example."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from bitarray import bitarray
from bitarray.util import int2ba
from golden.write import cases
from hypothesis import given
from support.sparse_tensors import (
    FRAMED,
    LAWS,
    ONE_FORM,
    assert_same,
    codec_id,
    every_codec,
    positions,
    sparse_tensor,
    sparse_tensors,
)

import flexswitch.codecs.format.container
from flexswitch.codecs.codec import Codec
from flexswitch.codecs.registry import CODECS, stored_codec
from flexswitch.codecs.sparse import SparseTensor

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
FORMAT = Path(flexswitch.codecs.format.container.__file__).with_name("FORMAT.md").read_text(encoding="utf-8")


# Plain references, from FORMAT.md's words; that of `context` is in test_context.py


def plane(values: list[int], width: int) -> bytes:
    fields = bitarray(endian="little")
    for value in values:
        fields.extend(int2ba(value, width, endian="little") if width else "")
    return fields.tobytes()  # bitarray pads the last byte with zeros


def levels_of(sparse: SparseTensor) -> bytes:
    return plane(sparse.levels.tolist(), sparse.bits)


def mask_of(sparse: SparseTensor, kept: list[int]) -> bytes:
    return plane([int(entry in kept) for entry in range(math.prod(sparse.shape))], 1)


def gaps_of(kept: list[int]) -> list[int]:
    return [place - before - 1 for before, place in zip([-1, *kept], kept, strict=False)]


def groups_of(sparse: SparseTensor, kept: list[int], group: int) -> list[list[int]]:
    groups: list[list[int]] = [[] for _ in range(math.ceil(math.prod(sparse.shape) / group))]
    for position in kept:
        groups[position // group].append(position)
    return groups


def reference_bitmask(sparse: SparseTensor, kept: list[int]) -> bytes:
    return mask_of(sparse, kept) + levels_of(sparse)


def reference_rice(sparse: SparseTensor, kept: list[int], remainder: int) -> bytes:
    gaps = gaps_of(kept)
    quotients = [bit for gap in gaps for bit in [0] * (gap // 2**remainder) + [1]]
    return levels_of(sparse) + plane([gap % 2**remainder for gap in gaps], remainder) + plane(quotients, 1)


def reference_grouped_coo(sparse: SparseTensor, kept: list[int], group: int) -> bytes:
    width = int(math.log2(group))
    groups = groups_of(sparse, kept, group)
    return (
        plane([int(bool(members)) for members in groups], 1)
        + plane([len(members) - 1 for members in groups if members], width)
        + plane([position % group for position in kept], width)
        + levels_of(sparse)
    )


def reference_flag4(sparse: SparseTensor, kept: list[int]) -> bytes:
    groups = groups_of(sparse, kept, 4)
    return (
        plane([int(bool(members)) for members in groups], 1)
        + plane([sum(1 << position % 4 for position in members) for members in groups if members], 4)
        + levels_of(sparse)
    )


def reference_raw(sparse: SparseTensor, kept: list[int]) -> bytes:
    width = {8: 16, 16: 16, 32: 32}.get(sparse.bits, 8)
    words = [0] * math.prod(sparse.shape)
    for position, level in zip(kept, sparse.levels.tolist(), strict=True):
        words[position] = level + 1 if sparse.bits <= 8 else level
    return plane(words, width)


def gap_bytes(sparse: SparseTensor, kept: list[int]) -> bytes:
    return b"".join(b"\xff" * (gap // 255) + bytes([gap % 255]) for gap in gaps_of(kept))


REFERENCES: dict[str, Callable[..., bytes]] = {
    "bitmask": reference_bitmask,
    "rice": reference_rice,
    "grouped-coo": reference_grouped_coo,
    "flag4": reference_flag4,
    "raw": reference_raw,
}
FRAME_CONTENTS = {"bitmask-zstd": mask_of, "gaps-zstd": gap_bytes}


def opened_frame(frame: bytes) -> bytes:
    """Returns what a frame holds, read with the magic number that the codecs leave out."""
    if not frame:
        return b""
    whole = zstandard.FRAME_HEADER + frame
    found = zstandard.get_frame_parameters(whole)
    assert (found.has_checksum, found.dict_id) == (False, 0)
    content = zstandard.ZstdDecompressor().decompress(whole)
    assert found.content_size == len(content)
    return content


def test_each_codec_has_a_reference() -> None:
    assert set(REFERENCES) == set(ONE_FORM)
    assert set(FRAME_CONTENTS) == set(FRAMED)
    assert {*ONE_FORM, *FRAMED, "context"} == set(CODECS)


@pytest.mark.parametrize("codec", [each for each in every_codec() if each.name in ONE_FORM], ids=codec_id)
@LAWS
@given(sparse=sparse_tensors(largest=700))
def test_the_bytes_are_those_of_the_plain_reference(codec: Codec, sparse: SparseTensor) -> None:
    expected = REFERENCES[codec.name](sparse, positions(sparse), **vars(codec))
    assert codec.encode(sparse) == expected


@pytest.mark.parametrize("name", FRAMED)
@LAWS
@given(sparse=sparse_tensors())
def test_the_levels_and_what_the_frame_holds_are_those_of_the_reference(
    name: str, sparse: SparseTensor
) -> None:
    data, levels = stored_codec(name, {}).encode(sparse), levels_of(sparse)
    assert data[: len(levels)] == levels
    assert opened_frame(data[len(levels) :]) == FRAME_CONTENTS[name](sparse, positions(sparse))


@pytest.mark.parametrize("name", FRAMED)
@pytest.mark.parametrize("gap", [0, 254, 255, 256, 509, 510, 511, 765, 1020])
def test_a_gap_of_any_length_is_written_as_the_reference_does(name: str, gap: int) -> None:
    for kept in ([gap], [0, gap + 1], [gap, 2 * gap + 1]):
        sparse = sparse_tensor((2 * gap + 2,), kept, [0] * len(kept), 0)
        data = stored_codec(name, {}).encode(sparse)
        assert opened_frame(data) == FRAME_CONTENTS[name](sparse, kept)
        assert_same(stored_codec(name, {}).decode(data, sparse.layout), sparse)


# Golden bytes: tests/golden/write.py writes them once for a new codec, and they stay for ever


@pytest.mark.parametrize("name", CODECS)
def test_golden_bytes_decode_and_are_encoded_again(name: str) -> None:
    binary, described = GOLDEN / f"{name}.bin", GOLDEN / f"{name}.json"
    assert binary.is_file(), f"no golden file of {name}; write it: cd tests && python -m golden.write {name}"
    data, used = binary.read_bytes(), 0
    for case in json.loads(described.read_text()):
        codec = stored_codec(name, case["settings"])
        expected = sparse_tensor(tuple(case["shape"]), case["kept"], case["levels"], case["bits"])
        payload = data[used : used + case["size"]]
        used += case["size"]
        assert_same(codec.decode(payload, expected.layout), expected)
        if name not in FRAMED:  # zstandard's bytes may differ between its versions
            assert codec.encode(expected) == payload
    assert used == len(data)


@pytest.mark.parametrize("name", CODECS)
def test_golden_files_hold_the_cases_that_are_written_for_a_codec(name: str) -> None:
    stored = json.loads((GOLDEN / f"{name}.json").read_text())
    expected = [case | {"shape": list(case["shape"])} for case in cases(name)]
    assert [{key: value for key, value in case.items() if key != "size"} for case in stored] == expected


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
    assert list(example_rows()) == list(CODECS)


@pytest.mark.parametrize("name", CODECS)
def test_the_worked_example_has_the_bytes_that_are_written(name: str) -> None:
    chosen, data = example_rows()[name]
    codec, sparse = stored_codec(name, chosen), example()
    assert_same(codec.decode(data, sparse.layout), sparse)
    if name in FRAMED:
        levels = levels_of(sparse)
        assert data[: len(levels)] == levels
        assert opened_frame(data[len(levels) :]) == FRAME_CONTENTS[name](sparse, positions(sparse))
        return
    assert codec.encode(sparse) == data
    if name in REFERENCES:
        assert REFERENCES[name](sparse, positions(sparse), **chosen) == data


def test_the_worked_example_has_the_mask_and_the_values_that_are_read() -> None:
    marks = "".join(
        "1" if entry in positions(example()) else "0" for entry in range(example().layout.entries)
    )
    assert example_value("mask").replace(" ", "") == marks
    blocks = list(example().dense_blocks(float(example_value("scale"))))
    assert [float(value) for value in example_value("values").split()] == np.concatenate(blocks).tolist()
