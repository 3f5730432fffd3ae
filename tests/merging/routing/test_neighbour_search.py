"""The nearest vectors against plain numpy in float64: the same ones, in the same order, whatever else is asked."""

import threading

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support import laws

from flexswitch.merging.routing import candidates, neighbour_search
from flexswitch.merging.routing.candidates import FaissFlat, TorchFlat
from flexswitch.merging.routing.nearest import rank_all, rank_candidates
from flexswitch.merging.routing.neighbour_search import NeighbourSearch

SOURCES = {"faiss": lambda width, device: FaissFlat(width), "torch": lambda width, device: TorchFlat(width, "cpu")}  # fmt: skip


@pytest.fixture(params=SOURCES, autouse=True)
def source(request, monkeypatch):
    """Each test runs by FAISS, and by torch as on a GPU without FAISS's own build for it."""
    monkeypatch.setattr(neighbour_search, "candidate_source", SOURCES[request.param])
    return request.param


@pytest.fixture
def compared_with_all(monkeypatch):
    """Returns a list that grows by an item for each query that is compared with all vectors."""
    found = []

    def counted(*arguments):
        found.append(1)
        rank_all(*arguments)

    monkeypatch.setattr(neighbour_search, "rank_all", counted)
    return found


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).normal(size=shape).astype(np.float32)


def plain_search(vectors: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    differences = queries[:, None].astype(np.float64) - vectors[None].astype(np.float64)
    distances = np.sqrt(np.square(differences).sum(2))
    positions = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(distances, positions, 1), positions


def assert_nearest(search: NeighbourSearch, vectors: np.ndarray, queries: np.ndarray, count: int) -> None:
    distances, positions = search.search(queries, count)
    expected_distances, expected = plain_search(vectors, queries, count)
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-12, atol=0)


@pytest.mark.parametrize("count", [1, 10, 60])
@pytest.mark.parametrize("width", [1, 6, 33, 384])
@pytest.mark.parametrize("queries", [1, 7, 8, 70], ids=lambda count: f"batch {count}")
def test_the_nearest_are_those_of_all_distances_in_float64(queries, width, count):
    vectors = normal(0, 500, width)
    assert_nearest(NeighbourSearch(vectors), vectors, normal(1, queries, width), count)


@pytest.mark.parametrize("shift", [0.0, 100.0, 10_000.0], ids=lambda shift: f"shift {shift:g}")
def test_a_far_origin_changes_nothing(shift):
    vectors, queries = normal(0, 400, 24) + np.float32(shift), normal(1, 64, 24) + np.float32(shift)
    assert_nearest(NeighbourSearch(vectors), vectors, queries, 10)


def test_random_vectors_are_seldom_compared_with_all(compared_with_all):
    vectors = normal(0, 2000, 32)
    NeighbourSearch(vectors).search(normal(1, 256, 32), 10)
    assert len(compared_with_all) < 3


def test_vectors_closer_together_than_float32_tells_are_still_told_apart(compared_with_all):
    # Around a point far from the centre: float32 sums lose what these distances differ in.
    cluster = 30 + 1e-4 * normal(0, 200, 16)
    vectors = np.concatenate([cluster, -30 + 1e-4 * normal(1, 200, 16)]).astype(np.float32)
    queries = (30 + 1e-4 * normal(2, 64, 16)).astype(np.float32)
    assert_nearest(NeighbourSearch(vectors), vectors, queries, 5)
    assert compared_with_all


def test_an_outlier_slows_nothing_down(compared_with_all):
    vectors = np.concatenate([normal(0, 2000, 16), np.full((1, 16), 1e6, np.float32)])
    assert_nearest(NeighbourSearch(vectors), vectors, normal(1, 64, 16), 5)
    assert not compared_with_all


@pytest.mark.parametrize("size", [1e-30, 1e18, 3e38], ids=lambda size: f"size {size:g}")
def test_distances_that_float32_can_not_hold_are_compared_all_the_same(size):
    vectors = np.clip(normal(0, 100, 4), -1, 1) * np.float32(size)
    queries = np.clip(normal(1, 20, 4), -1, 1) * np.float32(size)
    assert_nearest(NeighbourSearch(vectors), vectors, queries, 5)


@laws.settings(60, deadline=None)
@given(data=st.data(), shift=st.sampled_from([0, 3, 4096]), scale=st.sampled_from([1.0, 0.125, 64.0]))
def test_with_equal_distances_the_smaller_position_comes_first(data, shift, scale):
    width = data.draw(st.integers(1, 4))
    grid = st.integers(-2, 2)
    vectors = (
        data.draw(arrays(np.float32, (data.draw(st.integers(1, 60)), width), elements=grid)) + shift
    ) * scale
    queries = (data.draw(arrays(np.float32, (12, width), elements=grid)) + shift) * scale
    assert_nearest(NeighbourSearch(vectors), vectors, queries, data.draw(st.integers(1, 20)))


def test_many_equal_vectors_come_in_their_order():
    vectors = np.tile(normal(0, 1, 8), (300, 1))
    assert NeighbourSearch(vectors).search(normal(1, 20, 8), 4).positions.tolist() == [[0, 1, 2, 3]] * 20


@laws.settings(30, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.lists(st.integers(-30, 30), min_size=1, max_size=6))
def test_after_adding_and_removing_answers_are_those_of_a_fresh_search(seed, steps):
    generator = np.random.Generator(np.random.PCG64(seed))
    vectors = normal(seed, 50, 5)
    search = NeighbourSearch(vectors)
    for step in steps:
        if step >= 0:
            added = normal(seed + step, step, 5) + 1
            search.add(added)
            vectors = np.concatenate([vectors, added])
        else:
            gone = generator.choice(len(vectors), min(-step, len(vectors) - 1), replace=False)
            search.remove(gone)
            vectors = np.delete(vectors, gone, axis=0)
    queries = normal(seed + 1, 20, 5)
    assert len(search) == len(vectors)
    for one, other in zip(
        search.search(queries, 7), NeighbourSearch(vectors).search(queries, 7), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert_nearest(search, vectors, queries, 7)


def test_positions_that_are_named_twice_are_removed_once():
    vectors = normal(0, 100, 3)
    search = NeighbourSearch(vectors)
    search.remove(np.array([7, 3, 7]))
    assert_nearest(search, np.delete(vectors, [3, 7], axis=0), normal(1, 9, 3), 5)


def test_more_than_there_are_is_all_there_are():
    vectors = normal(0, 6, 3)
    assert NeighbourSearch(vectors).search(normal(1, 2, 3), 100).positions.shape == (2, 6)


def test_more_than_a_source_finds_at_once_are_compared_with_all(monkeypatch, compared_with_all):
    vectors, queries = normal(0, 100, 3), normal(1, 4, 3)
    search = NeighbourSearch(vectors)
    monkeypatch.setattr(type(search._source), "most", 20)
    assert_nearest(search, vectors, queries, 30)
    assert len(compared_with_all) == 4


def test_nothing_is_found_of_no_queries_and_among_no_vectors():
    search = NeighbourSearch(normal(0, 40, 3))
    assert search.search(np.empty((0, 3), np.float32), 5).positions.shape == (0, 5)
    search.remove(np.arange(40))
    assert search.search(normal(1, 2, 3), 5).positions.shape == (2, 0)
    search.add(normal(2, 30, 3))
    assert_nearest(search, normal(2, 30, 3), normal(1, 2, 3), 5)


@pytest.mark.parametrize("width", [32, 100])
def test_a_query_has_the_same_answer_alone_in_any_batch_and_on_any_number_of_threads(width):
    search = NeighbourSearch(normal(0, 3000, width))
    queries = normal(1, 200, width)
    whole = search.search(queries, 10)
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    try:
        torch.set_num_threads(2)
        faiss.omp_set_num_threads(2)
        for rows in (np.arange(5), np.arange(40, 57), np.arange(199, -1, -1)):
            for one, other in zip(search.search(queries[rows], 10), whole, strict=True):
                np.testing.assert_array_equal(one, other[rows])
    finally:
        torch.set_num_threads(before[0])
        faiss.omp_set_num_threads(before[1])


def test_queries_of_another_type_are_searched_in_float32_and_left_as_they_are():
    search = NeighbourSearch(normal(0, 100, 4))
    queries = np.asfortranarray(normal(1, 20, 4).astype(np.float64))
    queries.setflags(write=False)
    np.testing.assert_array_equal(
        search.search(queries, 5).positions, search.search(queries.astype(np.float32), 5).positions
    )


def test_faiss_has_its_own_threshold_back_after_every_search():
    before = faiss.cvar.distance_compute_blas_threshold
    search = NeighbourSearch(normal(0, 2000, 16))
    searches = [
        threading.Thread(target=lambda seed=seed: search.search(normal(seed, 64, 16), 5)) for seed in range(8)
    ]
    for each in searches:
        each.start()
    for each in searches:
        each.join()
    assert faiss.cvar.distance_compute_blas_threshold == before
    with pytest.raises(ZeroDivisionError), candidates._matrix_products():
        faiss.cvar.distance_compute_blas_threshold /= 0
    assert faiss.cvar.distance_compute_blas_threshold == before


def test_threads_that_search_at_once_get_the_answers_of_one(monkeypatch):
    search = NeighbourSearch(normal(0, 2000, 16))
    queries = [normal(seed, 5 + seed * 9, 16) for seed in range(8)]
    expected = [search.search(each, 5).positions for each in queries]
    found = [None] * len(queries)

    def ask(number):
        for _ in range(20):
            found[number] = search.search(queries[number], 5).positions

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(queries))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_on_cuda_faiss_searches_where_its_build_is_for_it_and_else_torch(monkeypatch):
    made = []
    monkeypatch.setattr(candidates, "TorchFlat", lambda width, device: made.append(("torch", width, device)))
    monkeypatch.setattr(candidates, "FaissGpuFlat", lambda width: made.append(("faiss", width)))
    for has in (False, True):
        monkeypatch.setattr(candidates, "has_gpu_faiss", lambda has=has: has)
        candidates.candidate_source(6, "cuda")
    assert made == [("torch", 6, "cuda"), ("faiss", 6)]


@pytest.mark.parametrize("kernel", ["compiled", "plain"])
def test_the_compiled_ranking_is_the_plain_one(kernel):
    vectors, queries = normal(0, 40, 7), normal(1, 6, 7)
    picked = np.stack([np.random.Generator(np.random.PCG64(n)).permutation(40)[:15] for n in range(6)])
    squares, positions = np.empty((6, 4)), np.empty((6, 4), np.int64)
    (rank_candidates if kernel == "compiled" else rank_candidates.py_func)(
        vectors, queries, picked, squares, positions
    )
    for row in range(6):
        kept = np.sort(picked[row])
        distances, nearest = plain_search(vectors[kept], queries[row : row + 1], 4)
        np.testing.assert_array_equal(positions[row], kept[nearest[0]])
        np.testing.assert_allclose(squares[row], distances[0] ** 2, rtol=1e-12)
        (rank_all if kernel == "compiled" else rank_all.py_func)(
            vectors, queries[row], squares[row], positions[row]
        )
        distances, nearest = plain_search(vectors, queries[row : row + 1], 4)
        np.testing.assert_array_equal(positions[row], nearest[0])
        np.testing.assert_allclose(squares[row], distances[0] ** 2, rtol=1e-12)
