"""SVD-r and Delta-CoMe against docs/methods.md §6.24 and §6.25, written anew in numpy and float64."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import laws
from support.checkpoints import compressed, memory_pair, message
from support.deltas import delta, dense, marked, normal
from support.sparse_tensors import LAWS

from flexswitch.codecs.errors import InputError
from flexswitch.merging.compression.delta import Compressed
from flexswitch.merging.compression.delta_come import band_ranks, delta_come
from flexswitch.merging.compression.svd import svd
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.task_vector import delta_tensor

Doubles = NDArray[np.float64]
FEW = laws.settings(40, LAWS)
SIDES = st.integers(1, 40)


def spectrum(count: int, seed: int = 0, shape: tuple[int, int] = (40, 30)) -> Doubles:
    """Returns a matrix of so many singular values, each 0.7 of the one before."""
    left, _, right = np.linalg.svd(normal(shape, seed).astype(np.float64), full_matrices=False)
    return np.asarray((left[:, :count] * 0.7 ** np.arange(count)) @ right[:count])


def truncated(matrix: Doubles, rank: int) -> Doubles:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray((left[:, :rank] * values[:rank]) @ right[:rank])


@FEW
@given(rows=SIDES, columns=SIDES, rank=st.integers(1, 50), seed=st.integers(0, 99))
def test_svd_is_the_nearest_matrix_of_its_rank(rows: int, columns: int, rank: int, seed: int) -> None:
    values = normal((rows, columns), seed)
    found = svd(delta(values, 8), rank=rank, bits=32)
    if rank * (rows + columns) >= rows * columns:
        assert found.shape is None
        assert np.array_equal(dense(found), values.reshape(-1))
        return
    assert (found.shape, found.sparse.shape) == ((rows, columns), (rows + columns, rank))
    expected = truncated(values.astype(np.float64), rank)
    np.testing.assert_allclose(
        dense(found).reshape(rows, columns), expected, atol=2e-6 * np.abs(values).max()
    )


def test_svd_in_16_bits_rounds_the_factors_to_bfloat16() -> None:
    values = normal((40, 30))
    wide, narrow = (svd(delta(values), rank=3, bits=bits) for bits in (32, 16))
    factors = torch.from_numpy(wide.sparse.levels.view(np.float32).reshape(70, 3).copy())
    rounded = factors.to(torch.bfloat16).float().numpy()
    assert narrow.sparse.bits == 16
    np.testing.assert_array_equal(
        dense(narrow),
        (rounded[:40].astype(float) @ rounded[40:].T.astype(float)).astype(np.float32).reshape(-1),
    )


@pytest.mark.parametrize("method", [svd, delta_come])
def test_rows_and_columns_that_did_not_change_stay_so_and_take_no_entries(method: object) -> None:
    values = normal((50, 40))
    values[7:] = 0
    values[:, ::2] = 0
    found: Compressed = method(delta(values))  # type: ignore[operator]
    assert not dense(found).reshape(50, 40)[7:].any()
    assert not dense(found).reshape(50, 40)[:, ::2].any()
    for part in found.parts:
        kept = marked(part).reshape(part.sparse.shape)
        assert not kept[7:50].any()
        assert not kept[50::2].any()


def test_a_delta_of_low_rank_is_stored_in_that_rank() -> None:
    values = spectrum(4).astype(np.float32)
    for found in (svd(delta(values), rank=9, bits=32), delta_come(delta(values), entry_bits=8.0)):
        assert sum(part.sparse.shape[1] for part in found.parts) == 4
    np.testing.assert_allclose(dense(svd(delta(values), rank=9, bits=32)), values.reshape(-1), atol=1e-6)


@pytest.mark.parametrize("shape", [(7,), (3, 4, 5), ()])
@pytest.mark.parametrize("others", ["keep", "drop"])
def test_what_is_no_matrix_is_kept_or_left_out(shape: tuple[int, ...], others: str) -> None:
    values = np.asarray(normal(shape)).reshape(shape)
    rounded = torch.from_numpy(values).to(torch.bfloat16).float().numpy().reshape(-1)
    for found in (svd(delta(values), others=others), delta_come(delta(values), others=others)):  # type: ignore[arg-type]
        assert dense(found).tolist() == (rounded.tolist() if others == "keep" else [0] * values.size)
        assert found.shape is None


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (6, 9), (1, 1)])
def test_what_is_empty_or_zero_keeps_nothing(shape: tuple[int, ...]) -> None:
    for found in (
        svd(delta(np.zeros(shape, np.float32)), rank=1),
        delta_come(delta(np.zeros(shape, np.float32))),
    ):
        assert dense(found).tolist() == [0] * math.prod(shape)
        assert len(found.sparse.levels) == 0


@laws.settings(200)
@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    entry_bits=st.floats(0.01, 8),
    first=st.integers(0, 9),
    second=st.integers(0, 40),
)
@example(rows=384, columns=384, entry_bits=1.0, first=2, second=32)
def test_the_ranks_are_the_most_that_the_bits_allow(
    rows: int, columns: int, entry_bits: float, first: int, second: int
) -> None:
    found, left, free = (
        band_ranks((rows, columns), entry_bits, (first, second)),
        entry_bits * rows * columns,
        min(rows, columns),
    )
    for width, most, rank in zip((8, 3, 2), (first, second, free), found, strict=True):
        cost = (rows + columns) * width + 32
        taken = 0
        while taken < most and free and left >= cost:
            taken, left, free = taken + 1, left - cost, free - 1
        assert rank == taken


def test_one_bit_an_entry_gives_about_the_ranks_of_the_paper() -> None:
    # Llama-2 7B: 2 vectors in 8 bits, 32 in 3 and 968 in 2 of the 4096 by 4096 matrices of attention
    assert band_ranks((4096, 4096), 1.0, (2, 32)) == (2, 32, 966)


def reference_column(column: Doubles, bits: int) -> tuple[Doubles, float]:
    """Returns a vector on its levels from −1 to 1, and its scale: of those tried the first of least error."""
    steps, best = 2**bits - 1, (math.inf, np.zeros(0), 0.0)
    for step in range(20, 3, -1):
        scale = step / 20 * np.abs(column).max()
        levels = [
            min(max(math.floor((value / scale * steps + steps) / 2 + 0.5), 0), steps) for value in column
        ]
        values = np.array([(2 * level - steps) / steps for level in levels]) * (column != 0)
        error = float(((column - scale * values) ** 2).sum())
        if error < best[0]:
            best = (error, values, scale)
    return best[1], best[2]


@FEW
@given(
    rows=SIDES, columns=SIDES, entry_bits=st.sampled_from([0.3, 1.0, 2.0, 6.0]), rank_8=st.integers(0, 3),
    rank_3=st.integers(0, 6), seed=st.integers(0, 99),
)  # fmt: skip
def test_delta_come_quantises_each_vector_by_itself(
    rows: int, columns: int, entry_bits: float, rank_8: int, rank_3: int, seed: int
) -> None:
    values = normal((rows, columns), seed)
    found = delta_come(delta(values, 8), entry_bits=entry_bits, rank_8=rank_8, rank_3=rank_3)
    left, sizes, right = np.linalg.svd(values.astype(np.float64), full_matrices=False)
    expected, start, bands = np.zeros((rows, columns)), 0, []
    for bits, rank in zip((8, 3, 2), band_ranks((rows, columns), entry_bits, (rank_8, rank_3)), strict=True):
        for index in range(start, start + rank):
            above, first = reference_column(left[:, index], bits)
            below, second = reference_column(right[index], bits)
            expected += float(f"{sizes[index] * first * second:.4g}") * np.outer(above, below)
        bands += [(rows + columns, rank, bits)] * bool(rank)
        start += rank
    np.testing.assert_allclose(
        dense(found).reshape(rows, columns), expected, atol=1e-5 * np.abs(values).max()
    )
    if bands:
        stored = [(*part.sparse.shape, part.sparse.bits) for part in found.parts]
        assert stored == bands


def test_more_bits_are_never_worse() -> None:
    values = spectrum(30).astype(np.float32)
    errors = [
        float(np.linalg.norm(dense(delta_come(delta(values), entry_bits=entry_bits)) - values.reshape(-1)))
        for entry_bits in (0.2, 0.5, 1.0, 2.0, 4.0)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.15 * np.linalg.norm(values)


def test_an_artifact_holds_the_bands_and_tells_the_error(tmp_path: Path) -> None:
    base, change = {"w": torch.zeros(40, 30)}, torch.from_numpy(spectrum(30).astype(np.float32))
    artifact = compressed(
        memory_pair(base, {"w": change}), tmp_path / "t.fsw", "delta-come", rank_3=4, entry_bits=3.0
    )
    record, error = artifact.header.tensors["w"], artifact.header.error
    assert [(part.rank, part.bits) for part in record.parts] == [(2, 8), (4, 3), (8, 2)]
    found = delta_tensor(ArtifactVector(artifact), "w")
    assert error is not None
    assert error.relative == pytest.approx(float((found - change).norm() / change.norm()), rel=6e-4)
    wide = compressed(memory_pair(base, {"w": change}), tmp_path / "s.fsw", "svd", rank=8, bits=32)
    assert wide.header.error is not None
    tail = np.linalg.svd(change.numpy().astype(np.float64), compute_uv=False)
    assert wide.header.error.relative == pytest.approx(
        np.linalg.norm(tail[8:]) / np.linalg.norm(tail), rel=6e-4
    )


def test_a_value_beyond_its_bits_is_refused() -> None:
    values = np.full((3,), np.finfo(np.float32).max, np.float32)
    told = message(InputError, lambda: svd(delta(values), bits=16))
    assert told == "tensor 'w': a value to be stored is not finite in 16 bits"
