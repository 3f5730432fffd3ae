"""Every form of a delta matrix against the dense delta in float64, for all bits, densities and layers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import laws
from support.sparse_tensors import header, write_artifact

from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.registry import get_codec
from flexswitch.codecs.sparse import LEVEL_DTYPES, SparseTensor, level_values
from flexswitch.merging.switching.activations import Activations
from flexswitch.merging.switching.csr import CsrMatrix
from flexswitch.merging.switching.delta_matrix import TransposedMatrix, cpu_matrix
from flexswitch.merging.switching.float32 import Float32Matrix
from flexswitch.merging.switching.int8 import Int8Matrix, Int8Term, add_products
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector

SCALE = 0.03


def artifact_of(folder, shape, bits, density, seed, zero=None):
    """Returns a task vector of one tensor "w", and its delta in float64."""
    generator = np.random.default_rng(seed)
    entries = int(np.prod(shape))
    marked = generator.random(entries) < density
    kept = int(marked.sum())
    if bits > 8:
        values = generator.normal(size=kept).astype(np.float32)
        levels = values.view(np.uint32) >> (16 if bits == 16 else 0)
    else:
        levels = generator.integers(0, 1 << bits, kept)
        if zero is not None:
            marked[np.flatnonzero(marked)[levels == zero]] = False
            levels = levels[levels != zero]
    levels = levels.astype(LEVEL_DTYPES[bits])
    sparse = SparseTensor(shape, np.packbits(marked, bitorder="little"), levels, bits)
    scale = SCALE if bits <= 8 else 1.0
    path = write_artifact(
        folder / f"{seed}.fsw",
        {"w": (sparse, scale, get_codec("bitmask")())},
        wanted=header("task"),
        zeros={} if zero is None else {"w": zero},
    )
    dense = np.zeros(entries)
    dense[marked] = level_values(levels, bits, scale, zero)
    return ArtifactVector(open_artifact(path)), dense.reshape(shape)


KINDS = st.tuples(
    st.sampled_from([1, 2, 4, 7, 8, 16, 32]),
    st.sampled_from([0.0, 0.02, 0.2, 0.5, 1.0]),
    st.tuples(st.integers(1, 20), st.integers(1, 70)),
    st.integers(0, 10_000),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("forms")


def made(folder, case, transposed=False, base_rms=0.0):
    bits, density, shape, seed = case
    (folder / f"{seed}.fsw").unlink(missing_ok=True)
    vector, dense = artifact_of(folder, shape, bits, density, seed)
    return cpu_matrix(vector, "w", transposed, base_rms), dense


@pytest.mark.usefixtures("passes")
@laws.settings(60, deadline=None)
@given(case=KINDS, transposed=st.booleans())
def test_every_form_gives_back_the_delta_to_the_last_bit(folder, case, transposed):
    matrix, dense = made(folder, case, transposed)
    assert matrix.shape == dense.shape
    assert np.array_equal(matrix.dense().numpy(), dense.astype(np.float32))


@laws.settings(60, deadline=None)
@given(case=KINDS, transposed=st.booleans(), factor=st.sampled_from([1.0, 0.3, -2.0]))
def test_adding_changes_weights_as_the_delta_does(folder, case, transposed, factor):
    matrix, dense = made(folder, case, transposed)
    base = np.random.default_rng(1).normal(size=dense.shape).astype(np.float32)
    weights = base.copy()
    matrix.add_to(weights, factor)
    np.testing.assert_allclose(
        weights, base + np.float32(factor) * dense.astype(np.float32), rtol=1e-6, atol=1e-7
    )


@laws.settings(60, deadline=None)
@given(case=KINDS, transposed=st.booleans(), tokens=st.integers(1, 140), data=st.data())
def test_products_are_those_of_float64_and_touch_only_their_tokens(folder, case, transposed, tokens, data):
    matrix, dense = made(folder, case, transposed)
    weight = dense.T if transposed else dense  # (out, in)
    generator = np.random.default_rng(2)
    inputs = (generator.normal(size=(tokens, weight.shape[1])) * generator.choice([1e-3, 1, 40])).astype(
        np.float32
    )
    positions = np.array(sorted(data.draw(st.sets(st.integers(0, tokens - 1), min_size=1))), np.int64)
    factors = generator.normal(size=len(positions)).astype(np.float32)
    bias = generator.normal(size=len(weight)).astype(np.float32)
    before = generator.normal(size=(tokens, len(weight))).astype(np.float32)
    out = before.copy()
    form = matrix.inner if transposed else matrix
    form.add_product(Activations(inputs), positions, factors, bias, out)
    expected = before.astype(np.float64)
    expected[positions] += factors[:, None] * (inputs[positions].astype(np.float64) @ weight.T + bias)
    size = np.abs(inputs[positions]).max() * np.abs(weight).sum(1).max(initial=0) + 4
    np.testing.assert_allclose(out, expected, rtol=0, atol=3e-6 * size)
    others = np.setdiff1d(np.arange(tokens), positions)
    assert np.array_equal(out[others], before[others])


@laws.settings(60, deadline=None)
@given(case=KINDS, tokens=st.integers(1, 40))
def test_looked_up_rows_are_added_where_they_belong(folder, case, tokens):
    matrix, dense = made(folder, case)
    generator = np.random.default_rng(3)
    ids = generator.integers(0, len(dense), tokens)
    positions = np.flatnonzero(generator.random(tokens) < 0.7)
    factors = generator.normal(size=len(positions)).astype(np.float32)
    out = np.ones((tokens, dense.shape[1]), np.float32)
    matrix.add_rows(ids, positions, factors, out)
    expected = np.ones((tokens, dense.shape[1]))
    expected[positions] += factors[:, None] * dense[ids[positions]]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("bits", "density"), [(1, 0.03), (16, 0.03), (1, 0.6), (4, 0.6)])
def test_a_tokens_product_depends_neither_on_its_neighbours_nor_on_threads(folder, bits, density):
    rows, columns, tokens = 900, 700, 1200  # enough for three threads
    matrix, _ = made(folder, (bits, density, (rows, columns), 77))
    inputs = np.random.default_rng(4).normal(size=(tokens, columns)).astype(np.float32)

    def product(chosen):
        out = np.zeros((len(chosen), rows), np.float32)
        ones, bias = np.ones(len(chosen), np.float32), np.zeros(rows, np.float32)
        matrix.add_product(Activations(inputs[chosen]), np.arange(len(chosen)), ones, bias, out)
        return out

    whole = product(np.arange(tokens))
    for chosen in ([0], [299, 3], list(range(100, 180))):
        assert np.array_equal(product(np.array(chosen)), whole[chosen])
    threads_before = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert np.array_equal(product(np.arange(tokens)), whole)
    finally:
        torch.set_num_threads(threads_before)


@laws.settings(30, deadline=None)
@given(seed=st.integers(0, 2**32), most=st.integers(1, 3000))
def test_several_int8_tasks_are_added_as_one_after_the_other(seed, most):
    generator = np.random.default_rng(seed)
    columns, rows, tokens = (int(generator.integers(2, high)) for high in (40, 30, 60))
    inputs = Activations(generator.normal(size=(tokens, columns)).astype(np.float32))
    parts = []
    for number in range(int(generator.integers(1, 6))):
        codes = generator.integers(-3, 4, (rows, columns)).astype(np.int8)
        matrix = Int8Matrix(codes, np.zeros(256, np.float32), float(generator.uniform(0.1, 2)), digits=2)
        positions = np.flatnonzero(
            generator.random(tokens) < (0.5 if number else 0)
        )  # the first has no tokens
        factors, bias = (generator.normal(size=size).astype(np.float32) for size in (len(positions), rows))
        parts.append(Int8Term(matrix, positions, factors, bias))
    together, apart = (np.ones((tokens, rows), np.float32) for _ in range(2))
    add_products(parts, inputs, together, max_sums=most)
    for part in parts:
        part.matrix.add_product(inputs, part.positions, part.factors, part.bias, apart)
    assert np.array_equal(together, apart)


def test_a_zero_point_shifts_the_codes(folder):
    vector, dense = artifact_of(folder, (12, 30), 3, 0.9, 123, zero=2)
    matrix = cpu_matrix(vector, "w")
    assert isinstance(matrix, Int8Matrix)
    assert np.array_equal(matrix.dense().numpy(), dense.astype(np.float32))


@pytest.mark.parametrize(
    ("bits", "density", "kind"),
    [(1, 0.03, CsrMatrix), (1, 0.2, Int8Matrix), (7, 0.2, Int8Matrix), (8, 0.2, CsrMatrix), (8, 0.5, Float32Matrix),
     (16, 0.05, CsrMatrix), (32, 0.5, Float32Matrix)],
)  # fmt: skip
def test_density_and_bits_decide_the_form(folder, bits, density, kind):
    matrix, _ = made(folder, (bits, density, (40, 50), 5))
    assert type(matrix) is kind
    transposed, _ = made(folder, (bits, density, (40, 50), 5), transposed=True)
    assert type(transposed) is TransposedMatrix
    assert transposed.nbytes == matrix.nbytes or kind is CsrMatrix


def test_a_vector_is_kept_as_float32(folder):
    vector, dense = artifact_of(folder, (50,), 1, 0.3, 9)
    matrix = cpu_matrix(vector, "w")
    assert isinstance(matrix, Float32Matrix)
    assert np.array_equal(matrix.dense().numpy(), dense.astype(np.float32)[None])


def test_a_delta_far_smaller_than_the_base_uses_one_byte_less_of_its_inputs(folder):
    small, _ = made(folder, (1, 0.5, (40, 50), 5), base_rms=1.0)
    large, _ = made(folder, (1, 0.5, (40, 50), 5), base_rms=SCALE)
    assert (small.digits, large.digits) == (2, 3)


def test_a_token_of_zeros_stays_zero_in_bytes():
    values = np.zeros((2, 5), np.float32)
    values[1, 2] = -3
    for count in (2, 3):
        digits, scales = Activations(values).digits(count)
        assert not digits[:, 0].any()
        assert scales[0] == 0
        assert np.float64(scales[1]) * (digits[0, 1, 2] * 256.0 ** (count - 1)) == pytest.approx(-3, rel=1e-6)
