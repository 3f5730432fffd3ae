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

from flexswitch.merging.routing.neighbour_search import NeighbourSearch

LIBRARIES = ("faiss", "torch")  # torch searches on a GPU, unless FAISS is built for it


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


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("count", [1, 10, 60])
@pytest.mark.parametrize("width", [1, 6, 33, 384])
@pytest.mark.parametrize("queries", [1, 7, 8, 70], ids=lambda count: f"batch {count}")
def test_neighbours_equal_those_of_all_distances_in_float64(queries, width, count, library):
    vectors = normal(0, 500, width)
    assert_nearest(NeighbourSearch(vectors, library=library), vectors, normal(1, queries, width), count)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("shift", [0.0, 100.0, 10_000.0], ids=lambda shift: f"shift {shift:g}")
def test_a_far_origin_changes_nothing(shift, library):
    vectors, queries = normal(0, 400, 24) + np.float32(shift), normal(1, 64, 24) + np.float32(shift)
    assert_nearest(NeighbourSearch(vectors, library=library), vectors, queries, 10)


@pytest.mark.parametrize("library", LIBRARIES)
def test_vectors_that_float32_distances_cannot_separate_are_ranked(library):
    # Around a point far from the centre: float32 sums lose what these distances differ in.
    cluster = 30 + 1e-4 * normal(0, 200, 16)
    vectors = np.concatenate([cluster, -30 + 1e-4 * normal(1, 200, 16)]).astype(np.float32)
    queries = (30 + 1e-4 * normal(2, 64, 16)).astype(np.float32)
    assert_nearest(NeighbourSearch(vectors, library=library), vectors, queries, 5)


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_outlier_changes_no_answer(library):
    vectors = np.concatenate([normal(0, 2000, 16), np.full((1, 16), 1e6, np.float32)])
    assert_nearest(NeighbourSearch(vectors, library=library), vectors, normal(1, 64, 16), 5)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("size", [1e-30, 1e18, 3e38], ids=lambda size: f"size {size:g}")
def test_distances_beyond_float32_are_compared(size, library):
    vectors = np.clip(normal(0, 100, 4), -1, 1) * np.float32(size)
    queries = np.clip(normal(1, 20, 4), -1, 1) * np.float32(size)
    assert_nearest(NeighbourSearch(vectors, library=library), vectors, queries, 5)


@pytest.mark.parametrize("library", LIBRARIES)
@laws.settings(60, deadline=None)
@given(data=st.data(), shift=st.sampled_from([0, 3, 4096]), scale=st.sampled_from([1.0, 0.125, 64.0]))
def test_with_equal_distances_the_smaller_position_comes_first(data, shift, scale, library):
    width = data.draw(st.integers(1, 4))
    grid = st.integers(-2, 2)
    vectors = (
        data.draw(arrays(np.float32, (data.draw(st.integers(1, 60)), width), elements=grid)) + shift
    ) * scale
    queries = (data.draw(arrays(np.float32, (12, width), elements=grid)) + shift) * scale
    assert_nearest(NeighbourSearch(vectors, library=library), vectors, queries, data.draw(st.integers(1, 20)))


@pytest.mark.parametrize("library", LIBRARIES)
def test_equal_vectors_are_found_in_order(library):
    vectors = np.tile(normal(0, 1, 8), (300, 1))
    assert (
        NeighbourSearch(vectors, library=library).search(normal(1, 20, 8), 4).positions.tolist()
        == [[0, 1, 2, 3]] * 20
    )


@pytest.mark.parametrize("library", LIBRARIES)
def test_all_vectors_are_found_if_more_are_requested(library):
    vectors = normal(0, 6, 3)
    assert NeighbourSearch(vectors, library=library).search(normal(1, 2, 3), 100).positions.shape == (2, 6)


@pytest.mark.parametrize("library", LIBRARIES)
def test_nothing_is_found_without_queries_or_vectors(library):
    search = NeighbourSearch(normal(0, 40, 3), library=library)
    assert search.search(np.empty((0, 3), np.float32), 5).positions.shape == (0, 5)
    empty = NeighbourSearch(np.empty((0, 3), np.float32), library=library)
    assert empty.search(normal(1, 2, 3), 5).positions.shape == (2, 0)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("width", [32, 100])
def test_an_answer_does_not_depend_on_the_batch_or_the_threads(width, library):
    search = NeighbourSearch(normal(0, 3000, width), library=library)
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


@pytest.mark.parametrize("library", LIBRARIES)
def test_queries_of_another_dtype_are_searched_in_float32_and_not_changed(library):
    search = NeighbourSearch(normal(0, 100, 4), library=library)
    queries = np.asfortranarray(normal(1, 20, 4).astype(np.float64))
    queries.setflags(write=False)
    np.testing.assert_array_equal(
        search.search(queries, 5).positions, search.search(queries.astype(np.float32), 5).positions
    )


def test_the_threshold_of_faiss_is_restored_after_every_search():
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


@pytest.mark.parametrize("library", LIBRARIES)
def test_concurrent_searches_give_the_same_answers(library):
    search = NeighbourSearch(normal(0, 2000, 16), library=library)
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
