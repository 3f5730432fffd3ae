"""The choice of a tensor's stored form: whatever is chosen gives the tensor back."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import laws
from support.sparse_tensors import BITS, LAWS, assert_same, sparse_tensor, sparse_tensors, write_artifact

from flexswitch.codecs.errors import UsageError
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.registry import CODECS
from flexswitch.codecs.sparse import LEVEL_DTYPES, SparseStats, SparseTensor
from flexswitch.codecs.storage import EFFORTS, StoredForm, check_effort, store, store_block

FILES = settings(LAWS, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = ["auto", *CODECS]


@st.composite
def patchy_tensors(draw: st.DrawFn) -> SparseTensor:
    """Matrices and more that keep entries in some rows alone."""
    shape = draw(st.sampled_from([(300, 10), (90, 33), (40, 3, 9), (64, 64), (9, 300), (200, 1)]))
    bits = draw(st.sampled_from([bits for bits in BITS if bits]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    marked = generator.random(shape) < draw(st.sampled_from([0.02, 0.5, 1.0]))
    marked[generator.random(shape[0]) < draw(st.sampled_from([0.5, 0.9]))] = False
    levels = generator.integers(1 if bits > 8 else 0, 1 << bits, int(marked.sum()), np.uint64)
    mask = np.packbits(marked, bitorder="little")
    return SparseTensor(shape, mask, levels.astype(LEVEL_DTYPES[bits]), bits)


def stored_bytes(form: StoredForm) -> int:
    return sum(len(block.data) for block in [*([form.rows] if form.rows else []), *form.blocks])


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("codec", NAMES)
def test_what_is_stored_gives_the_tensor_back(tmp_path: Path, codec: str, effort: str) -> None:
    @laws.settings(15, FILES)
    @given(sparse=sparse_tensors().filter(lambda sparse: sparse.bits) | patchy_tensors())
    def check(sparse: SparseTensor) -> None:
        form = store(sparse, codec, effort)
        artifact = open_artifact(write_artifact(tmp_path / "a.fsw", {"w": (sparse, 1.0, form)}))
        assert_same(artifact.sparse("w"), sparse)
        if codec != "auto":
            assert {block.codec for block in artifact.header.tensors["w"].stored} <= {codec}

    check()


@laws.settings(100, LAWS)
@given(sparse=sparse_tensors() | patchy_tensors())
def test_the_smallest_is_never_larger_than_the_fast_one(sparse: SparseTensor) -> None:
    assert stored_bytes(store(sparse, effort="small")) <= stored_bytes(store(sparse, effort="fast"))


def test_the_smallest_is_never_larger_than_the_fast_one_where_estimates_are_far_off() -> None:
    generator = np.random.default_rng(0)
    for period in (8, 24, 40, 104, 200, 600, 1000, 4000):
        for density in (0.1, 0.3, 0.5):
            pattern = generator.random(period) < density
            marked = np.resize(pattern, 1 << 15)
            levels = np.zeros(int(marked.sum()), np.uint8)
            sparse = SparseTensor(marked.shape, np.packbits(marked, bitorder="little"), levels, 1)
            assert stored_bytes(store(sparse, effort="small")) <= stored_bytes(store(sparse, effort="fast"))


@LAWS
@given(sparse=sparse_tensors())
def test_fast_takes_the_smallest_estimate_of_the_codecs_that_decode_fast(sparse: SparseTensor) -> None:
    stats = SparseStats(sparse)
    fast = {name: codec.fitted(stats) for name, codec in CODECS.items() if codec.fast}
    sizes = {name: codec.estimate_bytes(stats) for name, codec in fast.items()}
    found = store_block(sparse, "auto", "fast")
    assert found.codec == fast[min(sizes, key=lambda name: sizes[name])]
    assert found.kept == len(sparse.levels)
    assert found.data == found.codec.encode(sparse)


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("name", CODECS)
def test_a_codec_asked_for_is_taken(name: str, effort: str) -> None:
    form = store(sparse_tensor((64,), [3], [1], 1), name, effort)
    assert form.rows is None
    assert [block.codec.name for block in form.blocks] == [name]


def test_each_block_has_its_own_codec() -> None:
    marked = np.zeros((16, 1 << 17), np.uint8)
    marked[:8, ::2] = 1
    marked[8:, 5] = 1
    levels = np.zeros(int(marked.sum()), np.uint8)
    sparse = SparseTensor(marked.shape, np.packbits(marked, bitorder="little"), levels, 1)
    dense, thin = store(sparse).blocks
    assert dense.codec.name != thin.codec.name
    assert (dense.kept, thin.kept) == (8 << 16, 8)


def test_rows_without_an_entry_are_left_out_where_that_saves() -> None:
    marked = np.zeros((1000, 64), np.uint8)
    marked[::20] = np.random.default_rng(0).random((50, 64)) < 0.5
    levels = np.zeros(int(marked.sum()), np.uint8)
    sparse = SparseTensor(marked.shape, np.packbits(marked, bitorder="little"), levels, 1)
    form = store(sparse, "bitmask")
    assert form.rows is not None
    assert (form.rows.kept, [block.kept for block in form.blocks]) == (50, [int(marked.sum())])
    assert [len(block.data) for block in (form.rows, *form.blocks)] == [125, 50 * 8 + -(-len(levels) // 8)]
    assert store(sparse_tensor((1000,), [3], [0], 1), "bitmask").rows is None


@pytest.mark.parametrize("effort", EFFORTS)
def test_on_equal_sizes_the_first_one_registered_is_taken(effort: str) -> None:
    whole = sparse_tensor((8,), list(range(8)), [5] * 8, 32)
    stats = SparseStats(whole)
    chosen = {name: codec.fitted(stats) for name, codec in CODECS.items() if codec.fast or effort == "small"}
    sizes = {name: len(codec.encode(whole)) for name, codec in chosen.items()}
    first = next(name for name in chosen if sizes[name] == min(sizes.values()))
    assert store_block(whole, "auto", effort).codec.name == first


def test_a_tensor_without_entries_has_no_block() -> None:
    assert store(sparse_tensor((0,), [], [], 1)) == StoredForm(None, ())
    assert store(sparse_tensor((3, 0), [], [], 1), "raw", "small") == StoredForm(None, ())


def test_an_unknown_codec_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError) as caught:
        store(sparse_tensor((1,), [], [], 1), "flag5")
    known = ", ".join(CODECS)
    assert str(caught.value) == f"no codec is named 'flag5'; did you mean 'flag4'? (known: {known})"


def test_an_unknown_effort_is_refused_with_the_nearest_name() -> None:
    for effort in EFFORTS:
        check_effort(effort)
    with pytest.raises(UsageError) as caught:
        check_effort("smal")
    assert str(caught.value) == "no effort is named 'smal'; did you mean 'small'? (known: fast, small)"
