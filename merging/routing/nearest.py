"""Exact distances of a few candidates to each query, and of all vectors to one: compiled."""

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled
from flexswitch.codecs.sparse import FloatArray


@compiled
def rank_candidates(
    vectors: FloatArray,
    queries: FloatArray,
    candidates: NDArray[np.int64],
    squares: NDArray[np.float64],
    positions: NDArray[np.int64],
) -> None:
    """Fills (query, count) squared distances and positions with the nearest of each query's candidates.

    vectors: (vector, width); queries: (query, width); candidates: (query, candidate), at least `count`, each
    once. The nearest comes first, of equals the one of smaller position. In float64, in a fixed order of
    additions: a query has the same distances in any company.
    """
    for query in range(queries.shape[0]):
        for rank in range(squares.shape[1]):
            squares[query, rank] = np.inf
            positions[query, rank] = -1
        for position in candidates[query]:
            square = _squared_distance(vectors[position], queries[query])
            _insert(squares[query], positions[query], square, position)


@compiled
def rank_all(
    vectors: FloatArray, query: FloatArray, squares: NDArray[np.float64], positions: NDArray[np.int64]
) -> None:
    """Fills (count,) squared distances and positions with the nearest of all vectors to one query."""
    squares[:] = np.inf
    positions[:] = -1
    for position in range(vectors.shape[0]):
        _insert(squares, positions, _squared_distance(vectors[position], query), position)


@compiled
def rank_lists(
    vectors: FloatArray,
    original: NDArray[np.int64],
    starts: NDArray[np.int64],
    queries: FloatArray,
    probed: NDArray[np.int64],
    squares: NDArray[np.float64],
    positions: NDArray[np.int64],
) -> None:
    """Fills (query, count) squared distances and positions with the nearest of the lists probed.

    List l holds vectors[starts[l]:starts[l + 1]], whose positions are `original`; probed: (query, probe).
    Where they hold too few vectors, the last positions are -1.
    """
    for query in range(queries.shape[0]):
        squares[query] = np.inf
        positions[query] = -1
        for chosen in probed[query]:
            for index in range(starts[chosen], starts[chosen + 1]):
                square = _squared_distance(vectors[index], queries[query])
                _insert(squares[query], positions[query], square, original[index])


@compiled
def _squared_distance(one: FloatArray, other: FloatArray) -> float:
    # four sums: one alone would wait for each addition before the next
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    whole = one.size - one.size % 4
    for index in range(0, whole, 4):
        a += (np.float64(one[index]) - np.float64(other[index])) ** 2
        b += (np.float64(one[index + 1]) - np.float64(other[index + 1])) ** 2
        c += (np.float64(one[index + 2]) - np.float64(other[index + 2])) ** 2
        d += (np.float64(one[index + 3]) - np.float64(other[index + 3])) ** 2
    for index in range(whole, one.size):
        a += (np.float64(one[index]) - np.float64(other[index])) ** 2
    return (a + b) + (c + d)


@compiled
def _insert(squares: NDArray[np.float64], positions: NDArray[np.int64], square: float, position: int) -> None:
    """Puts a vector into its place among the nearest, where it is one of them."""
    rank = squares.size
    while rank > 0 and (
        square < squares[rank - 1]
        or positions[rank - 1] < 0
        or (square == squares[rank - 1] and position < positions[rank - 1])
    ):
        rank -= 1
        if rank + 1 < squares.size:
            squares[rank + 1] = squares[rank]
            positions[rank + 1] = positions[rank]
    if rank < squares.size:
        squares[rank] = square
        positions[rank] = position
