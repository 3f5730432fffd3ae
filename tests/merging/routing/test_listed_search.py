"""Searching lists around centres: what is found is exact, how much of it is told, and it is taken where it pays."""

import numpy as np
import pytest
import torch

from flexswitch.merging.routing import listed_search
from flexswitch.merging.routing.listed_search import ListedSearch, open_search
from flexswitch.merging.routing.nearest import rank_lists
from flexswitch.merging.routing.neighbour_search import NeighbourSearch
from flexswitch.merging.routing.query_index import QueryIndex
from flexswitch.merging.routing.query_set import QuerySet, QuerySetHeader


def clouds(seed: int, tasks: int, spread: float, width: int = 8) -> np.ndarray:
    """Returns 40 vectors around each of some centres."""
    generator = np.random.Generator(np.random.PCG64(seed))
    centres = spread * np.random.Generator(np.random.PCG64(99)).normal(size=(tasks, width))
    return (np.repeat(centres, 40, 0) + generator.normal(size=(40 * tasks, width))).astype(np.float32)


def plain_search(vectors: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    distances = np.linalg.norm(queries[:, None].astype(np.float64) - vectors[None], axis=2)
    return np.argsort(distances, axis=1, kind="stable")[:, :count]


def plain_recall(found: np.ndarray, true: np.ndarray) -> float:
    return sum(len(set(one) & set(other)) for one, other in zip(found, true, strict=True)) / true.size


def test_the_recall_that_is_told_is_about_what_queries_see():
    vectors, queries = clouds(0, 50, 6.0), clouds(1, 50, 6.0)[::7]
    search = ListedSearch(NeighbourSearch(vectors))
    found = search.search(queries, 10)
    assert 0.99 <= search.recall <= 1
    assert plain_recall(found.positions, plain_search(vectors, queries, 10)) > 0.97
    nearest = vectors[found.positions].astype(np.float64) - queries[:, None]
    np.testing.assert_allclose(found.distances, np.linalg.norm(nearest, axis=2), rtol=1e-12)
    assert (np.diff(found.distances, axis=1) >= 0).all()


def test_where_clouds_overlap_lists_find_too_little_and_the_search_stays_exact(monkeypatch):
    monkeypatch.setattr(listed_search, "_LISTED_FROM", 100)
    apart, together = clouds(0, 50, 6.0), clouds(0, 50, 0.0, width=40)
    assert isinstance(open_search(apart, "cpu"), ListedSearch)
    search = open_search(together, "cpu")
    assert isinstance(search, NeighbourSearch)
    assert search.recall == 1


def test_a_small_set_is_searched_exactly(monkeypatch):
    vectors = clouds(0, 50, 6.0)
    monkeypatch.setattr(listed_search, "_LISTED_FROM", len(vectors) + 1)
    assert isinstance(open_search(vectors, "cpu"), NeighbourSearch)


@pytest.fixture
def every_list(monkeypatch):
    monkeypatch.setattr(listed_search, "_PROBES", (10**6,))


@pytest.mark.usefixtures("every_list")
def test_with_every_list_probed_the_search_is_exact_also_after_adding_and_removing():
    vectors, queries = clouds(0, 12, 1.0), clouds(1, 12, 1.0)[::9]
    search = ListedSearch(NeighbourSearch(vectors))
    assert search.recall == 1
    np.testing.assert_array_equal(search.search(queries, 7).positions, plain_search(vectors, queries, 7))
    gone, added = np.array([400, 3, 77, 3]), clouds(2, 3, 1.0)
    search.remove(gone)
    search.add(added)
    vectors = np.concatenate([np.delete(vectors, gone, axis=0), added])
    assert len(search) == len(vectors)
    np.testing.assert_array_equal(search.vectors, vectors)
    for one, other in zip(
        search.search(queries, 7), NeighbourSearch(vectors).search(queries, 7), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_more_neighbours_than_the_lists_hold_are_found_all_the_same():
    vectors, queries = clouds(0, 20, 6.0), clouds(1, 20, 6.0)[::50]
    search = ListedSearch(NeighbourSearch(vectors))
    np.testing.assert_array_equal(search.search(queries, 700).positions, plain_search(vectors, queries, 700))


def test_answers_and_centres_depend_on_neither_batch_nor_threads():
    vectors, queries = clouds(0, 50, 3.0), clouds(1, 50, 3.0)[::11]
    whole = ListedSearch(NeighbourSearch(vectors)).search(queries, 10)
    before = torch.get_num_threads()
    import faiss

    try:
        torch.set_num_threads(2)
        faiss.omp_set_num_threads(2)
        again = ListedSearch(NeighbourSearch(vectors))
        for rows in (np.arange(3), np.array([7]), np.arange(len(queries))[::-1]):
            for one, other in zip(again.search(queries[rows], 10), whole, strict=True):
                np.testing.assert_array_equal(one, other[rows])
    finally:
        torch.set_num_threads(before)
        faiss.omp_set_num_threads(before)


def test_a_query_index_of_many_exemplars_tells_its_recall(monkeypatch):
    vectors = clouds(0, 50, 3.0)
    header = QuerySetHeader(tasks=[f"t{n}" for n in range(50)], features="pooled", per_task=40, seed=0)
    query_set = QuerySet(header, vectors, np.repeat(np.arange(50, dtype=np.int32), 40))
    assert QueryIndex(query_set, 10).recall == 1
    exact = QueryIndex(query_set, 10).weights(torch.from_numpy(clouds(1, 50, 3.0)))
    monkeypatch.setattr(listed_search, "_LISTED_FROM", 100)
    monkeypatch.setattr(listed_search, "_RECALL", 0.8)
    index = QueryIndex(query_set, 10)
    assert 0.8 <= index.recall < 1
    routed = index.weights(torch.from_numpy(clouds(1, 50, 3.0)))
    assert (routed.leading == exact.leading).float().mean() > 0.95


@pytest.mark.parametrize("kernel", ["compiled", "plain"])
def test_the_compiled_scan_of_lists_is_the_plain_one(kernel):
    vectors, queries = clouds(0, 3, 1.0), clouds(1, 3, 1.0)[:5]
    original = np.random.Generator(np.random.PCG64(0)).permutation(120)
    starts, probed = np.array([0, 50, 50, 90, 120]), np.array([[0, 1], [3, 0], [1, 1], [2, 3], [3, 2]])
    squares, positions = np.empty((5, 4)), np.empty((5, 4), np.int64)
    scan = rank_lists if kernel == "compiled" else rank_lists.py_func
    scan(vectors[original], original, starts, queries, probed, squares, positions)
    for row in range(5):
        inside = np.sort(
            np.concatenate([original[starts[n] : starts[n + 1]] for n in np.unique(probed[row])])
        )
        if not len(inside):
            assert positions[row].tolist() == [-1] * 4
            continue
        np.testing.assert_array_equal(
            positions[row], inside[plain_search(vectors[inside], queries[row : row + 1], 4)[0]]
        )
