"""Matrices that are stored by their singular vectors without data, against plain numpy in float64."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.checkpoints import MemoryCheckpoint, State, file_pair
from support.deltas import normal

from flexswitch.codecs.errors import UsageError
from flexswitch.codecs.format.artifact_writer import ArtifactWriter, PackedTensor, packed_sum, packed_tensor
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.storage import store
from flexswitch.merging.compression.compress import compress
from flexswitch.merging.compression.plan import Training
from flexswitch.merging.flex_switch import low_rank_form as low_rank_module
from flexswitch.merging.flex_switch.low_rank_form import low_rank_form, matrix_of, widths
from flexswitch.merging.switching.activations import Activations
from flexswitch.merging.switching.delta_matrix import cpu_matrix, untransposed
from flexswitch.merging.switching.low_rank_matrix import LowRankMatrix
from flexswitch.merging.switching.sum_matrix import SumMatrix, base_factor
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.live_weights import LiveWeights
from flexswitch.merging.task_vectors.restore import LazyState, restored_tensors
from flexswitch.merging.task_vectors.singular_triples import approximate_triples
from flexswitch.merging.task_vectors.task_vector import delta_tensor

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]

ERRORS = {2: 0.1188, 3: 0.03744, 4: 0.01154, 5: 0.003495, 6: 0.001041, 7: 3.035e-4, 8: 8.714e-5}


def of_rank(rank: int, rows: int, columns: int, fall: float = 0.8, seed: int = 0) -> Floats:
    """Returns a matrix of a rank, each singular value `fall` times the one before."""
    left, _, right = np.linalg.svd(normal((rows, columns), seed).astype(np.float64), full_matrices=False)
    return ((left[:, :rank] * fall ** np.arange(rank)) @ right[:rank]).astype(np.float32)


def gain(values: Doubles, chosen: tuple[int, ...]) -> float:
    return sum(
        value**2 * (1 - ERRORS[width]) ** 2 for value, width in zip(values, chosen, strict=True) if width
    )


def cost(side: int, chosen: tuple[int, ...]) -> int:
    return sum(side * width + 32 for width in chosen if width)


@pytest.mark.parametrize("fall", [1.0, 0.9, 0.5, 0.2])
@pytest.mark.parametrize("bits", [0, 200, 500, 1000, 2000, 5000])
def test_no_other_widths_are_worth_more_at_their_price(fall: float, bits: int) -> None:
    values, side = fall ** np.arange(4.0), 90
    found = tuple(widths(values, side, bits).tolist())
    assert cost(side, found) <= bits
    spent = cost(side, found)
    others = itertools.product((0, *ERRORS), repeat=4)
    best = max(gain(values, other) for other in others if cost(side, other) <= spent)
    assert gain(values, found) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize(("rank", "bits"), [(1, 400), (3, 2_000), (8, 6_000), (30, 9_000)])
def test_a_form_stays_within_its_bits_and_knows_its_error(rank: int, bits: int) -> None:
    values = of_rank(rank, 40, 30)
    found = low_rank_form(matrix_of(values, bits), (40, 30), np.arange(40), bits)
    assert found is not None
    assert found.squares is not None
    stored = sum(
        len(part.sparse.levels) * part.sparse.bits + 32 * part.sparse.shape[1] for part in found.parts
    )
    assert stored <= bits
    off = values.astype(np.float64) - found.values().reshape(40, 30)
    assert found.squares.error == pytest.approx(np.sum(off**2), rel=1e-4)
    assert found.squares.total == pytest.approx(np.sum(values.astype(np.float64) ** 2), rel=1e-9)
    kept = sum(part.sparse.shape[1] for part in found.parts)
    left_out = np.linalg.svd(values.astype(np.float64), compute_uv=False)[kept:]
    assert found.squares.error < np.sum(left_out**2) + 0.3 * found.squares.total


def test_left_vectors_make_up_for_the_rounding_of_right_ones() -> None:
    values, bits = of_rank(6, 200, 20, fall=1.0), 6 * (220 * 2 + 32)
    matrix = matrix_of(values, bits)
    found = low_rank_form(matrix, (200, 20), np.arange(200), bits)
    assert found is not None
    assert found.squares is not None
    rounded_alone = 1 - (1 - ERRORS[2]) ** 2  # of a flat spectrum, both vectors by themselves
    assert found.squares.error < 0.9 * rounded_alone * found.squares.total


def test_rounded_vectors_that_depend_on_each_other_are_refitted_together() -> None:
    values, right = of_rank(3, 20, 4), np.array([[1.0, 1.0, 3.0], [1, 1, -1], [-1, -1, 1], [1, 1, 3]])
    left = low_rank_module._refitted(values, right)
    expected = values.astype(np.float64) @ np.linalg.pinv(right).T
    np.testing.assert_allclose(left, expected, rtol=0, atol=1e-6)


def test_rows_that_have_not_changed_stay_zero() -> None:
    values, rows = of_rank(2, 20, 30), np.arange(3, 60, 3)[: 20 - 1]
    found = low_rank_form(matrix_of(values[:19], 3000), (60, 30), rows, 3000)
    assert found is not None
    whole = found.values().reshape(60, 30)
    assert not np.delete(whole, rows, axis=0).any()
    assert np.linalg.norm(whole[rows] - values[:19]) < 0.3 * np.linalg.norm(values[:19])


def test_too_few_bits_for_one_pair_of_vectors_give_no_form() -> None:
    assert low_rank_form(matrix_of(of_rank(2, 20, 30), 131), (20, 30), np.arange(20), 131) is None


def test_triples_of_a_large_matrix_are_nearly_the_leading_ones() -> None:
    values = torch.from_numpy(of_rank(60, 300, 200, fall=0.9)).double()
    found, exact = approximate_triples(values, 10), torch.linalg.svdvals(values)
    torch.testing.assert_close(found.values, exact[:10], rtol=1e-3, atol=0)
    near = (found.left * found.values) @ found.right
    least = torch.linalg.vector_norm(exact[10:])
    assert torch.linalg.vector_norm(values - near) < 1.001 * least
    assert torch.equal(approximate_triples(values, 10).left, found.left)


# --- the choice of forms ----------------------------------------------------------------------------------

BASE: State = {
    "low.weight": torch.from_numpy(normal((120, 80), 1)),
    "sparse.weight": torch.from_numpy(normal((120, 80), 2)),
    "low.bias": torch.from_numpy(normal((120,), 3)),
}


def tuned(decay: float = 1.0) -> State:
    """Returns weights of which one matrix moved along three directions, and of the other few entries did."""
    few = normal((120, 80), 4) * (np.random.default_rng(5).random((120, 80)) < 0.02)
    changes = {
        "low.weight": 0.5 * of_rank(3, 120, 80),
        "sparse.weight": 0.1 * few,
        "low.bias": 0.01 * few[:, 0],
    }
    found = {name: base + torch.from_numpy(changes[name].astype(np.float32)) for name, base in BASE.items()}
    return {name: each - (1 - decay) * BASE[name] if each.dim() > 1 else each for name, each in found.items()}


def made(folder: Path, finetuned: State, base: State = BASE, **settings: object) -> Artifact:
    folder.mkdir(exist_ok=True)
    pair, path = file_pair(folder, base, finetuned), folder / "t.fsw"
    given = {"objective": "none", "target_size": "1900", "effort": "fast", **settings}
    compress(pair, path, "t", "flexswitch", given, overwrite=True, training=Training(base=pair.base))
    return open_artifact(path)


@pytest.mark.parametrize("decay", [1.0, 0.8])
def test_each_matrix_takes_the_form_that_is_nearer(tmp_path: Path, decay: float) -> None:
    found, sparse = made(tmp_path, tuned(decay)), made(tmp_path / "sparse", tuned(decay), form="sparse")
    assert found.header.tensors["low.weight"].rank is not None
    assert found.header.tensors["sparse.weight"].rank is None
    assert all(record.rank is None for record in sparse.header.tensors.values())
    assert found.path.stat().st_size <= 1900
    assert found.header.error is not None
    assert sparse.header.error is not None
    assert found.header.error.relative < 0.7 * sparse.header.error.relative
    vector = ArtifactVector(found, LiveWeights(BASE))
    state = LazyState(restored_tensors(MemoryCheckpoint(BASE), vector, 1.0, None))
    off = torch.linalg.vector_norm(state["low.weight"] - tuned(decay)["low.weight"])
    assert off < 0.4 * torch.linalg.vector_norm(torch.from_numpy(0.5 * of_rank(3, 120, 80)))


def test_sparse_deltas_keep_their_largest_entries(tmp_path: Path) -> None:
    state = {**tuned(), "low.weight": BASE["low.weight"] + (tuned()["sparse.weight"] - BASE["sparse.weight"])}
    assert all(record.rank is None for record in made(tmp_path, state).header.tensors.values())


def test_where_the_signs_of_most_entries_fit_they_are_kept_unless_vectors_are_far_nearer(
    tmp_path: Path,
) -> None:
    near, far = tuned(), tuned()
    near["low.weight"] += 0.005 * torch.from_numpy(normal((120, 80), 9))
    assert made(tmp_path / "near", near, target_size="4200").header.tensors["low.weight"].rank is None
    assert made(tmp_path / "far", far, target_size="4200").header.tensors["low.weight"].rank is not None


@pytest.mark.parametrize("target", range(1100, 2000, 53))
def test_a_form_that_fits_is_found_at_every_size(tmp_path: Path, target: int) -> None:
    base: State = {
        "w": torch.from_numpy(normal((200, 200), 0)),
        "x.bias": torch.from_numpy(normal((200,), 1)),
    }
    moved = {
        "w": base["w"] + torch.from_numpy(of_rank(1, 200, 200)),
        "x.bias": base["x.bias"] + 0.01 * torch.from_numpy(normal((200,), 2)),
    }
    found = made(tmp_path, moved, base, target_size=str(target))
    assert found.header.error is not None
    assert found.header.error.relative < 0.4


def test_what_rounding_left_is_no_pair_of_vectors(tmp_path: Path) -> None:
    base: State = {"w": torch.from_numpy(normal((200, 200), 0))}
    found = made(
        tmp_path, {"w": base["w"] + torch.from_numpy(of_rank(1, 200, 200))}, base, target_size="4000"
    )
    assert sum(part.rank or 0 for part in found.header.tensors["w"].parts) == 1


def test_vectors_that_keep_little_of_a_matrix_are_not_used(tmp_path: Path) -> None:
    state = {**BASE, "low.weight": BASE["low.weight"] + 0.1 * torch.from_numpy(normal((120, 80), 6))}
    found = made(tmp_path, state, target_size="2500")
    assert found.header.tensors["low.weight"].rank is None


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("decay", [1.0, 0.8])
def test_an_engine_multiplies_by_the_thin_factors(
    tmp_path: Path, decay: float, beside: bool, transposed: bool
) -> None:
    artifact = made(tmp_path, tuned(decay))
    record = artifact.header.tensors["low.weight"]
    assert bool(record.base_factor) == (decay < 1)
    if beside:
        artifact = with_entries(artifact, tmp_path / "both.fsw")
    vector = ArtifactVector(artifact, LiveWeights(BASE))
    matrix = cpu_matrix(vector, "low.weight", transposed, 1.0)
    assert matrix.nbytes < BASE["low.weight"].nbytes / 2
    expected = delta_tensor(vector, "low.weight").numpy()
    np.testing.assert_allclose(matrix.dense(), expected, rtol=0, atol=1e-6)
    weights = np.ones_like(expected)
    matrix.add_to(weights, 0.5)
    np.testing.assert_allclose(weights, 1 + 0.5 * expected, rtol=0, atol=1e-6)
    inner, whole = untransposed(matrix), expected.T if transposed else expected
    inputs, places, shares = normal((4, whole.shape[1]), 7), np.array([0, 2, 3]), np.float32([1, -2, 0.5])
    out, bias = np.zeros((4, whole.shape[0]), np.float32), normal((whole.shape[0],), 8)
    assert isinstance(inner, LowRankMatrix | SumMatrix)
    inner.add_product(Activations(inputs), places, shares, bias, out)
    base = BASE["low.weight"].numpy()
    rest = whole - base_factor(inner) * (base.T if transposed else base)  # it is in the base's own product
    products = np.zeros(out.shape)
    products[places] = shares[:, None] * (inputs[places].astype(np.float64) @ rest.T + bias)
    np.testing.assert_allclose(out, products, rtol=1e-4, atol=1e-4)
    ids, rows = np.array([3, 50, 3, 70]), np.zeros((4, whole.shape[1]), np.float32)
    inner.add_rows(ids, places, shares, rows)
    taken = np.zeros(rows.shape)
    taken[places] = shares[:, None] * whole[ids[places]]
    np.testing.assert_allclose(rows, taken, rtol=0, atol=1e-6)


def with_entries(artifact: Artifact, path: Path) -> Artifact:
    """Returns the artifact with the entries of its sparse matrix added to the other, as training does."""
    records, header = artifact.header.tensors, artifact.header
    with ArtifactWriter(path) as writer:
        for name, record in records.items():
            parts = list(artifact_parts(artifact, name))
            if name == "low.weight":
                parts = [*artifact_parts(artifact, "sparse.weight"), *parts]
            writer.add_tensor(name, packed_sum(parts, record.base_factor))
        writer.finish(header.model_copy(update={"tensors": {}, "error": None}))
    return open_artifact(path)


def artifact_parts(artifact: Artifact, name: str) -> Iterator[PackedTensor]:
    for number, part in enumerate(artifact.header.tensors[name].parts):
        sparse = artifact.sparse(name, number)
        shape = None if part.rank is None else tuple(part.shape)
        yield packed_tensor(sparse, store(sparse), part.scale, part.dtype, shape=shape, weights=part.weights)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"densities": "allocated", "form": "auto"}, "densities=allocated keeps entries alone"),
        (
            {"objective": "kl", "target_size": None, "lambda": 1.0, "form": "auto"},
            "give a target size in place of lambda=1.0",
        ),
    ],
)
def test_what_has_no_vectors_is_refused(tmp_path: Path, settings: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        made(tmp_path, tuned(), **settings)
