"""The search by an IVF: exact distances, measured recall, and exact search where the IVF finds too little."""

import faiss
import numpy as np
import torch

from flexswitch.merging.routing.neighbour_search import NeighbourSearch
from flexswitch.merging.routing.query_index import QueryIndex
from flexswitch.merging.routing.query_set import QuerySet, QuerySetHeader


def clouds(seed: int, tasks: int, spread: float, width: int = 8) -> np.ndarray:
    """Returns 40 vectors around each of some centres."""
    generator = np.random.Generator(np.random.PCG64(seed))
    centres = spread * np.random.Generator(np.random.PCG64(99)).normal(size=(tasks, width))
    return (np.repeat(centres, 40, 0) + generator.normal(size=(40 * tasks, width))).astype(np.float32)


def approximate(vectors: np.ndarray) -> NeighbourSearch:
    return NeighbourSearch(vectors, approximate_from=1)


def plain_search(vectors: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    distances = np.linalg.norm(queries[:, None].astype(np.float64) - vectors[None], axis=2)
    return np.argsort(distances, axis=1, kind="stable")[:, :count]


def plain_recall(found: np.ndarray, true: np.ndarray) -> float:
    return sum(len(set(one) & set(other)) for one, other in zip(found, true, strict=True)) / true.size


def test_the_reported_recall_is_close_to_the_recall_of_queries():
    vectors, queries = clouds(0, 50, 6.0), clouds(1, 50, 6.0)[::7]
    search = approximate(vectors)
    found = search.search(queries, 10)
    assert 0.99 <= search.recall < 1
    assert plain_recall(found.positions, plain_search(vectors, queries, 10)) > 0.97
    nearest = vectors[found.positions].astype(np.float64) - queries[:, None]
    np.testing.assert_allclose(found.distances, np.linalg.norm(nearest, axis=2), rtol=1e-12)
    assert (np.diff(found.distances, axis=1) >= 0).all()


def test_the_search_stays_exact_where_clouds_overlap_and_lists_find_too_little():
    vectors, queries = clouds(0, 50, 0.0, width=40), clouds(1, 50, 0.0, width=40)[::40]
    search = approximate(vectors)
    assert search.recall == 1
    np.testing.assert_array_equal(search.search(queries, 10).positions, plain_search(vectors, queries, 10))


def test_a_small_set_is_searched_exactly():
    vectors = clouds(0, 50, 6.0)
    assert NeighbourSearch(vectors, approximate_from=len(vectors) + 1).recall == 1
    assert NeighbourSearch(vectors).recall == 1


def test_more_neighbours_than_the_lists_hold_are_found():
    vectors, queries = clouds(0, 50, 6.0), clouds(1, 50, 6.0)[::50]
    search = approximate(vectors)
    assert search.recall < 1
    np.testing.assert_array_equal(
        search.search(queries, 1500).positions, plain_search(vectors, queries, 1500)
    )


def test_vectors_too_far_apart_for_float32_are_searched_exactly():
    vectors = np.where(clouds(0, 5, 1.0) > 0, np.float32(3e38), np.float32(-3e38))
    assert approximate(vectors).recall == 1


def test_answers_depend_on_neither_batch_nor_threads():
    vectors, queries = clouds(0, 50, 6.0), clouds(1, 50, 6.0)[::11]
    first = approximate(vectors)
    assert first.recall < 1
    whole = first.search(queries, 10)
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    try:
        torch.set_num_threads(2)
        faiss.omp_set_num_threads(2)
        again = approximate(vectors)
        assert again.recall == first.recall
        for rows in (np.arange(3), np.array([7]), np.arange(len(queries))[::-1]):
            for one, other in zip(again.search(queries[rows], 10), whole, strict=True):
                np.testing.assert_array_equal(one, other[rows])
    finally:
        torch.set_num_threads(before[0])
        faiss.omp_set_num_threads(before[1])


def test_a_query_index_of_many_exemplars_reports_its_recall():
    header = QuerySetHeader(tasks=[f"t{n}" for n in range(50)], features="pooled", per_task=40, seed=0)
    query_set = QuerySet(header, clouds(0, 50, 6.0), np.repeat(np.arange(50, dtype=np.int32), 40))
    queries = torch.from_numpy(clouds(1, 50, 6.0))
    exact, index = QueryIndex(query_set, 10), QueryIndex(query_set, 10, approximate_from=1)
    assert exact.recall == 1
    assert 0.99 <= index.recall < 1
    same = index.weights(queries).leading == exact.weights(queries).leading
    assert same.float().mean() > 0.95
