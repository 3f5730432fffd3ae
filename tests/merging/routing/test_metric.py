"""The learned metric: its parts against plain numpy, and its accuracy on planted features."""

import numpy as np
import pytest
import torch

from flexswitch.merging.routing.cross_validation import FOLDS, cross_validate, folds, leave_one_out
from flexswitch.merging.routing.grid import on_grid
from flexswitch.merging.routing.lda import lda, scatter_of
from flexswitch.merging.routing.metric import first_as_good, learn_metric, spread_rows
from flexswitch.merging.routing.nca import nca, nca_loss
from flexswitch.merging.routing.neighbour_search import NeighbourSearch

TASKS = 4


def planted(seed=0, per_task=30, width=20, noise=6.0):
    """Returns features whose first columns separate the tasks; the others are larger noise."""
    generator = np.random.Generator(np.random.PCG64(seed))
    ids = np.repeat(np.arange(TASKS), per_task)
    features = generator.normal(size=(len(ids), width))
    features[:, :TASKS] += 3 * np.eye(TASKS)[ids]
    features[:, TASKS:] *= noise
    return torch.from_numpy(features), torch.from_numpy(ids)


def plain_routed(points, ids, query, count, skip=None):
    """Returns the task of most neighbours; ties go to the task with the nearest exemplar."""
    distances = [np.linalg.norm(point - query) for point in points]
    order = [row for row in np.argsort(distances, kind="stable") if row != skip][:count]
    votes = np.bincount([ids[row] for row in order])
    return next(ids[row] for row in order if votes[ids[row]] == votes.max())


# --- discriminants ----------------------------------------------------------------------------------------


def plain_discriminants(features, ids, shrinkage):
    """Returns Fisher's directions by the generalised eigenproblem, (task - 1, width)."""
    features = features.numpy() - features.numpy().mean(0)
    means = np.stack([features[ids == task].mean(0) for task in range(TASKS)])
    within = sum(np.cov(features[ids == task].T, bias=True) for task in range(TASKS)) / TASKS
    shrunk = (1 - shrinkage) * within + shrinkage * np.trace(within) / len(within) * np.eye(len(within))
    between = means.T @ means / TASKS
    values, vectors = np.linalg.eig(np.linalg.solve(shrunk, between))
    order = np.argsort(-values.real)[: TASKS - 1]
    return (vectors.real[:, order] / np.sqrt(np.einsum("ij,ik,kj->j", vectors.real[:, order], shrunk, vectors.real[:, order]))).T  # fmt: skip


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 0.9])
def test_the_directions_are_fishers_discriminants(shrinkage):
    features, ids = planted()
    found = lda(scatter_of(features, ids), 32, shrinkage, fill=False).numpy()
    plain = plain_discriminants(features, ids.numpy(), shrinkage)
    # the same but for signs and one scale: compare the distances they give
    ratio = np.linalg.norm(found) / np.linalg.norm(plain)
    np.testing.assert_allclose(found.T @ found, ratio**2 * plain.T @ plain, rtol=0, atol=1e-6)


def test_points_are_scaled_for_votes_that_fall_with_the_square_of_distance():
    features, ids = planted()
    for rank in (2, 3, 10):
        points = (features - features.mean(0)) @ lda(scatter_of(features, ids), rank, 0.5).T
        assert points.shape[1] == rank
        # the spread is set before components are left away; exp(-d²) then is neither 0 nor 1 for most pairs
        assert 5 < float(points.square().sum(1).mean()) < 8


def test_further_directions_are_principal_components_of_the_rest():
    features, ids = planted()
    scatter = scatter_of(features, ids)
    found = lda(scatter, 9, 0.5)
    few = lda(scatter, 9, 0.5, fill=False)
    assert (len(found), len(few)) == (9, TASKS - 1)
    scale = float(found[0].norm() / few[0].norm())
    torch.testing.assert_close(found[: TASKS - 1], few * scale, rtol=0, atol=1e-6)
    spread = ((features - features.mean(0)) @ found[TASKS - 1 :].T).square().sum(0)
    assert (spread.diff() <= 1e-6).all()  # the largest first


def test_there_are_no_more_directions_than_the_exemplars_span():
    features, ids = planted(per_task=2, width=20)
    found = lda(scatter_of(features, ids), 32, 0.5)
    assert found.shape == (7, 20)  # the eight exemplars' mean is subtracted
    assert found.isfinite().all()


def test_features_outside_the_exemplars_span_are_ignored():
    features, ids = planted(per_task=4, width=40)
    found = lda(scatter_of(features, ids), 5, 0.4)
    span = np.linalg.svd((features - features.mean(0)).numpy(), full_matrices=False)[2][:15]
    np.testing.assert_allclose(found.numpy() @ span.T @ span, found.numpy(), rtol=0, atol=1e-6)


# --- neighbourhood components -----------------------------------------------------------------------------


def plain_loss(points, ids):
    total = 0.0
    for row, point in enumerate(points):
        near = np.exp(-np.square(points - point).sum(1))
        near[row] = 0
        total -= np.log(near[ids == ids[row]].sum() / near.sum())
    return total / len(points)


def test_the_loss_follows_the_definition():
    features, ids = planted(per_task=6)
    points = 0.2 * features[:, :6]
    same = ids.unsqueeze(0) == ids.unsqueeze(1)
    assert float(nca_loss(points, same)) == pytest.approx(plain_loss(points.numpy(), ids.numpy()), rel=1e-9)


def test_an_exemplar_alone_in_its_task_does_not_count():
    points = torch.tensor([[0.0], [1.0], [5.0]], dtype=torch.float64)
    ids = np.array([0, 0, 1])
    same = torch.from_numpy(ids[:, None] == ids)
    expected = -(
        np.log(np.exp(-1) / (np.exp(-1) + np.exp(-25))) + np.log(np.exp(-1) / (np.exp(-1) + np.exp(-16)))
    )
    assert float(nca_loss(points, same)) == pytest.approx(expected / 2, rel=1e-9)


def test_each_checkpoint_fits_its_exemplars_better_from_the_start_on():
    features, ids = planted()
    start = 0.05 * torch.eye(20, dtype=torch.float64)[:8]
    same = ids.unsqueeze(0) == ids.unsqueeze(1)
    found = nca(features, ids, start, (0, 10, 40))
    torch.testing.assert_close(found[0], start, rtol=0, atol=1e-8)
    losses = [float(nca_loss(features @ metric.T, same)) for metric in found]
    assert losses[0] > losses[1] > losses[2]


def test_a_checkpoint_does_not_depend_on_those_before_it():
    features, ids = planted()
    start = 0.05 * torch.eye(20, dtype=torch.float64)[:8]
    together = nca(features, ids, start, (0, 5, 10))
    alone = nca(features, ids, start, (10,))
    assert torch.equal(together[2], alone[0])


# --- how well it routes -----------------------------------------------------------------------------------


def test_leaving_one_out_equals_a_plain_vote_of_the_ten_nearest_others():
    features, ids = planted(noise=1.0)
    expected = [
        plain_routed(features.numpy(), ids.numpy(), query, 10, skip=row) == ids[row]
        for row, query in enumerate(features.numpy())
    ]
    search = NeighbourSearch(features.float().numpy())
    right = leave_one_out(search, ids.numpy().astype(np.int32)) == ids.numpy()
    np.testing.assert_array_equal(right, expected)
    assert 0.5 < right.mean() < 1


def test_a_fifth_of_each_task_is_held_out_of_the_training_in_turn():
    features, ids = planted(noise=1.0)
    fold_of = folds(ids)
    assert [int((fold_of == fold).sum()) for fold in range(FOLDS)] == [24] * FOLDS
    seen = []

    def learn(some, of):
        seen.append(some)
        return [torch.eye(20, dtype=torch.float64)[:5], torch.eye(20, dtype=torch.float64)]

    found = cross_validate(features, ids, learn)
    for number, matrix in enumerate((np.eye(20)[:5], np.eye(20))):
        right = []
        for fold in range(FOLDS):
            kept, left = (fold_of != fold).numpy(), (fold_of == fold).numpy()
            points, queries = features.numpy()[kept] @ matrix.T, features.numpy()[left] @ matrix.T
            routed = [plain_routed(points, ids.numpy()[kept], query, 10) for query in queries]
            right += list(routed == ids.numpy()[left])
        assert found[number] == pytest.approx(100 * np.mean(right))
    for fold, some in enumerate(seen):
        assert torch.equal(some, features[fold_of != fold])


@pytest.mark.parametrize(
    ("shares", "count", "expected"),
    [([80.0, 81.0, 82.0], 800, 1), ([80.0, 81.0, 82.0], 8, 0), ([50.0, 90.0], 800, 1), ([100.0, 100.0], 5, 0)],
)  # fmt: skip
def test_the_first_share_within_a_standard_error_of_the_best_is_chosen(shares, count, expected):
    assert first_as_good(shares, count) == expected


@pytest.mark.parametrize(("count", "most"), [(5, 10), (10, 10), (100, 7)])
def test_rows_are_spread_evenly(count, most):
    rows = spread_rows(count, most)
    assert len(rows) == min(count, most)
    assert len(set(rows.tolist())) == len(rows)
    assert (rows.diff() >= count // most).all()


# --- the whole --------------------------------------------------------------------------------------------


def test_learning_finds_the_planted_columns_and_routes_new_samples_better():
    features, ids = planted()
    learned = learn_metric(features, ids.numpy().astype(np.int32), 8)
    assert learned.metric.dtype == np.float32
    assert learned.metric.shape == (8, 20)
    accuracy = learned.accuracy
    assert accuracy.learned_held_out > accuracy.euclidean_held_out + 20
    new, new_ids = planted(seed=1)
    matrix = learned.metric.astype(np.float64)
    routed = [
        [plain_routed(features.numpy() @ m.T, ids.numpy(), query @ m.T, 10) for query in new.numpy()]
        for m in (matrix, np.eye(20))
    ]
    right = [100 * np.mean(np.array(each) == new_ids.numpy()) for each in routed]
    assert right[0] > right[1] + 20
    assert accuracy.learned_held_out == pytest.approx(right[0], abs=12)  # held-out shares are honest


def test_the_same_exemplars_give_the_same_bytes_for_any_thread_count():
    features, ids = planted(width=40)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(learn_metric(features, ids.numpy().astype(np.int32), 8).metric.tobytes())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1


def repeated(features):
    """Replaces half of the exemplars by copies of the others."""
    return features[torch.arange(len(features)) // 2 * 2]


SHAPES = {
    "more exemplars than columns": lambda features: features,
    "fewer exemplars than columns": lambda features: torch.cat([features] * 12, 1),
    "columns without a difference": lambda features: torch.cat([features, torch.ones_like(features)], 1),
    "exemplars twice": repeated,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_differences_in_the_last_bits_of_float64_do_not_change_a_metric(shape):
    features, ids = planted(per_task=10, noise=2.0)
    features = on_grid(SHAPES[shape](features), 20)
    generator = torch.Generator().manual_seed(0)
    errors = torch.randn(features.shape, generator=generator, dtype=torch.float64)
    found = [
        learn_metric(each, ids.numpy().astype(np.int32), 32)
        for each in (features, features + 1e-15 * features.abs().max() * errors)
    ]
    assert found[0].metric is not None
    assert found[0].accuracy == found[1].accuracy
    assert found[0].metric.tobytes() == found[1].metric.tobytes()
