"""The query index against plain numpy: each sample's weights are its neighbours' shares."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support import laws
from support.checkpoints import message

from flexswitch.codecs.errors import InputError
from flexswitch.merging.routing.neighbour_search import NeighbourSearch
from flexswitch.merging.routing.query_index import QueryIndex
from flexswitch.merging.routing.query_set import QuerySet, QuerySetHeader


def make_query_set(features: np.ndarray, task_ids: list[int], count: int) -> QuerySet:
    tasks = [f"task{number}" for number in range(count)]
    header = QuerySetHeader(tasks=tasks, features="pooled", per_task=len(features), seed=0)
    return QuerySet(header, features.astype(np.float32), np.array(task_ids, np.int32))


def random_query_set(seed: int, exemplars: int = 60, width: int = 6, tasks: int = 4) -> QuerySet:
    generator = np.random.Generator(np.random.PCG64(seed))
    ids = generator.integers(0, tasks, exemplars)
    return make_query_set(generator.normal(size=(exemplars, width)) + 0.3 * ids[:, None], list(ids), tasks)


def random_queries(seed: int, count: int = 40, width: int = 6) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def plain_neighbours(query_set: QuerySet, query: np.ndarray, count: int) -> np.ndarray:
    """Returns the nearest exemplars of one query by Euclidean distance, ties in the order of the exemplars."""
    differences = query_set.points.astype(np.float64) - query.astype(np.float64)
    distances = np.sqrt(np.square(differences).sum(1))
    return np.argsort(distances, kind="stable")[:count]


def plain_weights(query_set: QuerySet, queries: torch.Tensor, count: int) -> np.ndarray:
    weights = np.zeros((len(queries), len(query_set.header.tasks)))
    for row, query in enumerate(queries.numpy()):
        nearest = query_set.task_ids[plain_neighbours(query_set, query, count)]
        for task in nearest:
            weights[row, task] += 1 / len(nearest)
    return weights


@pytest.mark.parametrize("neighbours", [1, 5, 10, 60])
@pytest.mark.parametrize("seed", range(3))
def test_weights_are_the_shares_of_the_nearest_exemplars(seed, neighbours):
    query_set, queries = random_query_set(seed), random_queries(seed)
    weights, leading, distance, _ = QueryIndex(query_set, neighbours).weights(queries)
    assert (weights.dtype, weights.shape, leading.shape) == (torch.float32, (40, 4), (40,))
    np.testing.assert_allclose(weights, plain_weights(query_set, queries, neighbours), rtol=0, atol=1e-7)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=0, atol=1e-6)
    assert (weights[torch.arange(40), leading] == weights.max(1).values).all()
    nearest = [query_set.points[plain_neighbours(query_set, query, 1)[0]] for query in queries.numpy()]
    np.testing.assert_allclose(distance, np.linalg.norm(nearest - queries.numpy(), axis=1), rtol=1e-6)


@laws.settings(50, deadline=None)
@given(
    features=arrays(np.float32, (12, 2), elements=st.integers(-3, 3)),
    queries=arrays(np.float32, (5, 2), elements=st.integers(-3, 3)),
    ids=st.lists(st.integers(0, 2), min_size=12, max_size=12),
    neighbours=st.integers(1, 15),
)
def test_with_equal_distances_the_earlier_exemplar_is_the_nearer_one(features, queries, ids, neighbours):
    query_set = make_query_set(features, ids, 3)
    weights, leading, *_ = QueryIndex(query_set, neighbours).weights(torch.from_numpy(queries))
    np.testing.assert_allclose(
        weights, plain_weights(query_set, torch.from_numpy(queries), neighbours), rtol=0, atol=1e-6
    )
    for row, query in enumerate(queries):
        nearest = query_set.task_ids[plain_neighbours(query_set, query, neighbours)]
        votes = np.bincount(nearest, minlength=3)
        first = next(task for task in nearest if votes[task] == votes.max())
        assert leading[row] == first


def test_ties_go_to_the_task_with_the_nearer_exemplar():
    query_set = make_query_set(np.array([[0.0], [3.0], [4.0], [7.0]]), [1, 0, 0, 1], 2)
    index = QueryIndex(query_set, 4)
    weights, leading, *_ = index.weights(torch.tensor([[0.5], [3.2], [6.9]]))
    assert weights.tolist() == [[0.5, 0.5]] * 3
    assert leading.tolist() == [1, 0, 1]


def test_a_larger_share_outweighs_the_nearest_exemplar():
    query_set = make_query_set(np.array([[0.0], [1.0], [2.0], [50.0]]), [0, 1, 1, 0], 2)
    weights, leading, *_ = QueryIndex(query_set, 3).weights(torch.tensor([[-1.0]]))
    np.testing.assert_allclose(weights, [[1 / 3, 2 / 3]], rtol=1e-6)
    assert leading.tolist() == [1]


def test_all_exemplars_vote_if_there_are_fewer_than_the_neighbours():
    query_set = random_query_set(0, exemplars=7)
    queries = random_queries(0)
    weights, *_ = QueryIndex(query_set, 100).weights(queries)
    share = np.bincount(query_set.task_ids, minlength=4) / 7
    np.testing.assert_allclose(weights, np.tile(share, (40, 1)), atol=1e-6)


def test_a_task_without_exemplars_has_no_weight():
    query_set = make_query_set(np.eye(3), [0, 2, 2], 4)
    weights, *_ = QueryIndex(query_set, 3).weights(torch.zeros(1, 3))
    np.testing.assert_allclose(weights, [[1 / 3, 0, 2 / 3, 0]], atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 100.0, 10_000.0], ids=lambda shift: f"shift {shift:g}")
@pytest.mark.parametrize("vote", ["uniform", "kernel"])
def test_a_sample_has_the_same_answer_alone_and_in_any_batch(shift, vote):
    query_set = random_query_set(1, exemplars=300, width=24)
    query_set = QuerySet(query_set.header, query_set.points + np.float32(shift), query_set.task_ids)
    queries = random_queries(2, count=128, width=24) + shift
    index = QueryIndex(query_set, 10, vote=vote)
    whole = index.weights(queries)
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(3))
    for rows in (order, *torch.arange(0, 128, 5).view(-1, 1)):
        for one, other in zip(index.weights(queries[rows]), whole, strict=True):
            assert torch.equal(one, other[rows])


def test_features_of_another_float_type_are_searched_in_float32():
    query_set, queries = random_query_set(4), random_queries(4).to(torch.bfloat16)
    index = QueryIndex(query_set, 5)
    expected = index.weights(queries.float())[0]
    for other in (queries, queries.double(), queries.float().requires_grad_()):
        assert torch.equal(index.weights(other)[0], expected)


def test_features_of_another_width_are_refused():
    index = QueryIndex(random_query_set(0, width=6), 5)
    assert message(InputError, lambda: index.weights(torch.zeros(2, 7))) == (
        "features of width 7, the query index holds width 6"
    )


def test_the_kernel_gives_nearer_exemplars_more():
    query_set = make_query_set(np.array([[0.0], [1.0], [2.0], [50.0]]), [0, 1, 1, 0], 2)
    weights, leading, *_ = QueryIndex(query_set, 3, vote="kernel").weights(torch.tensor([[-0.5]]))
    shares = np.exp([0, -2 * (2.25 - 0.25) / 6, -2])
    np.testing.assert_allclose(
        weights[0], [shares[0] / shares.sum(), shares[1:].sum() / shares.sum()], rtol=1e-6
    )
    assert leading.tolist() == [0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value):
    queries = random_queries(0)
    queries[3, 2] = value
    assert message(InputError, lambda: QueryIndex(random_query_set(0), 5).weights(queries)) == (
        "the features of a sample are not finite; it has no nearest exemplar"
    )


# --- samples far from every exemplar ----------------------------------------------------------------------


def plain_usual_distance(features: np.ndarray) -> float:
    """Returns the 99th percentile of the exemplars' distances to the nearest other one."""
    distances = np.linalg.norm(features[:, None].astype(np.float64) - features[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return float(np.quantile(distances.min(1), 0.99))


@pytest.mark.parametrize("seed", range(3))
def test_far_samples_are_farther_than_99_percent_of_exemplars(seed):
    query_set, queries = random_query_set(seed, exemplars=200), 1.5 * random_queries(seed)
    index = QueryIndex(query_set, 5)
    limit = plain_usual_distance(query_set.points)
    assert index.far_from == pytest.approx(limit, rel=1e-12)
    routed = index.weights(queries)
    assert 0 < routed.far.sum() < 40
    np.testing.assert_array_equal(routed.far, routed.distance > limit)


def test_a_duplicate_exemplar_is_at_distance_0():
    features = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    assert QueryIndex(make_query_set(features, [0, 0, 1, 1], 2), 1).far_from == pytest.approx(
        plain_usual_distance(features)
    )


def test_nothing_is_far_from_a_single_exemplar():
    routed = QueryIndex(make_query_set(np.zeros((1, 2)), [0], 1), 5).weights(torch.full((1, 2), 1e6))
    assert routed.far.tolist() == [False]
    assert routed.weights.tolist() == [[1.0]]


def test_the_far_distance_is_measured_on_some_of_many_exemplars():
    query_set = random_query_set(0, exemplars=6000, width=3)  # more than are measured
    limit = QueryIndex(query_set, 5).far_from
    assert limit == QueryIndex(query_set, 5).far_from
    nearest_other = NeighbourSearch(query_set.points).nearest_others(np.arange(6000), 1).distances
    assert limit == pytest.approx(np.quantile(nearest_other, 0.99), rel=0.3)
