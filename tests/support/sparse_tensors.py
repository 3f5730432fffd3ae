"""Sparse tensors, codecs and small artifacts that the tests of codecs/ share."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from support import laws

from flexswitch.codecs.blocks import as_matrix, cut
from flexswitch.codecs.codec import Codec
from flexswitch.codecs.format.artifact_writer import ArtifactWriter, packed_tensor
from flexswitch.codecs.format.extra_forms import packed_extra
from flexswitch.codecs.format.records import ArtifactHeader, BaseIdentity, MethodRecord, RawTensor
from flexswitch.codecs.registry import CODECS, get_codec
from flexswitch.codecs.sparse import GROUP_SIZES, LEVEL_DTYPES, SparseLayout, SparseTensor
from flexswitch.codecs.storage import StoredBlock, StoredForm

LAWS = laws.settings(30, derandomize=True, deadline=None, database=None)
FEW = laws.settings(12, LAWS)

BITS = tuple(LEVEL_DTYPES)
# Settings of the codecs that have any, all or (`rice`) some; a codec without a line here has none.
SETTINGS: dict[str, list[dict[str, int]]] = {
    "rice": [{"remainder": width} for width in (0, 1, 5, 20)],
    "context": [{"patterns": count} for count in (1, 2, 4, 8, 16)],
    "grouped-coo": [{"group": size} for size in GROUP_SIZES],
}
# In these a tensor has one form: what decodes is what `encode` writes. Of a frame, zstandard's version
# decides the bytes, and in `context` the writer may choose each row's pattern.
ONE_FORM = ("bitmask", "rice", "grouped-coo", "flag4", "raw")
FRAMED = ("bitmask-zstd", "gaps-zstd")

BASE = BaseIdentity(fingerprint="ab" * 32, id="org/base")
DENSITIES = (0.0, 0.002, 0.03, 0.2, 0.5, 0.9, 1.0)
_SPECIAL = {16: (0x8000, 0x7FC0, 0x7F80, 1), 32: (0x80000000, 0x7FC00000, 0x7F800000, 1)}  # −0, NaN, ∞, tiny


def every_codec() -> list[Codec]:
    """Returns each registered codec with each of its settings."""
    return [get_codec(name)(**chosen) for name in CODECS for chosen in SETTINGS.get(name, [{}])]


def codec_id(codec: Codec) -> str:
    """Returns a codec's name and settings, as a test's name shows them."""
    return "-".join([codec.name, *map(str, vars(codec).values())])


def sparse_tensor(shape: tuple[int, ...], kept: list[int], levels: list[int], bits: int) -> SparseTensor:
    """Returns the tensor that keeps the entries at the rising flat positions `kept`."""
    marked = np.zeros(math.prod(shape), np.bool_)
    marked[kept] = True
    return SparseTensor(
        shape, np.packbits(marked, bitorder="little"), np.array(levels, LEVEL_DTYPES[bits]), bits
    )


def positions(sparse: SparseTensor) -> list[int]:
    """Returns the flat positions of the kept entries."""
    marked = np.unpackbits(sparse.mask, count=sparse.layout.entries, bitorder="little")
    return [int(position) for position in np.flatnonzero(marked)]


def shapes(largest: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of one entry up to about `largest`, of any number of dimensions, of odd and even sizes."""
    flat = st.tuples(st.integers(1, largest))
    deep = st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple)
    return st.one_of(flat, deep.filter(lambda shape: math.prod(shape) <= largest))


@st.composite
def sparse_tensors(draw: st.DrawFn, largest: int = 2100) -> SparseTensor:
    """Tensors of any shape, bits and density, their kept entries scattered or in one run."""
    shape, bits = draw(shapes(largest)), draw(st.sampled_from(BITS))
    entries, density = math.prod(shape), draw(st.sampled_from(DENSITIES))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        marked = generator.random(entries) < density
    else:
        marked = np.roll(np.arange(entries) < round(density * entries), generator.integers(entries))
    kept = int(np.count_nonzero(marked))
    levels = generator.integers(0 if bits <= 8 else 1, 1 << bits, kept, np.uint64)
    special = _SPECIAL.get(bits, ())[:kept]
    levels[: len(special)] = special
    return SparseTensor(
        shape, np.packbits(marked, bitorder="little"), levels.astype(LEVEL_DTYPES[bits]), bits
    )


def assert_same(found: SparseTensor, expected: SparseTensor) -> None:
    """Fails where two tensors differ in anything."""
    assert_valid(found, expected.layout)
    assert np.array_equal(found.mask, expected.mask)
    assert np.array_equal(found.levels, expected.levels)


def assert_valid(found: SparseTensor, layout: SparseLayout) -> None:
    """Fails where a tensor is not one of that layout, or breaks a promise of `SparseTensor`."""
    assert found.layout == layout
    assert found.mask.dtype == np.uint8
    assert found.mask.shape == (layout.mask_bytes,)
    assert int(np.unpackbits(found.mask).sum()) == layout.kept
    assert len(positions(found)) == layout.kept  # so no bit is set behind the last entry
    assert found.levels.dtype == LEVEL_DTYPES[layout.bits]
    assert all(level < 1 << layout.bits for level in found.levels.tolist())
    assert layout.bits <= 8 or all(found.levels.tolist())


def header(name: str = "sst2", **fields: Any) -> ArtifactHeader:
    """Returns an artifact's header as a compression method makes it."""
    method = MethodRecord(name="t-switch", settings={"drop": 0.6})
    return ArtifactHeader(name=name, **{"base": BASE, "method": method, "parameters": 1000, **fields})


def write_artifact(
    path: Path,
    tensors: Mapping[str, tuple[SparseTensor, float, Codec | StoredForm]],
    extras: Mapping[str, RawTensor] | None = None,
    wanted: ArtifactHeader | None = None,
    zeros: Mapping[str, int] | None = None,
) -> Path:
    """Writes an artifact of (tensor, scale, stored form) by name, all of dtype F32; returns its path.

    zeros: the zero points of those tensors that have one.

    A codec in place of the form stands for one that leaves no rows out and takes this codec for each block.
    """
    with ArtifactWriter(path) as writer:
        for name, extra in (extras or {}).items():
            writer.add_extra(name, packed_extra(extra))
        for name, (sparse, scale, form) in tensors.items():
            if not isinstance(form, StoredForm):
                cuts = cut(sparse, as_matrix(sparse.shape))
                stored = [StoredBlock(form, len(part.levels), form.encode(part)) for part in cuts]
                form = StoredForm(None, tuple(stored))
            writer.add_tensor(name, packed_tensor(sparse, form, scale, "F32", (zeros or {}).get(name)))
        writer.finish(wanted or header())
    return path
