"""The nearest of some vectors by Euclidean distance, exactly.

Fast float32 arithmetic gives a few candidates more than are wanted; they are compared in float64. A
bound on the rounding says for each query whether one that matters may have been missed, and such a
query is compared with all vectors. So an answer depends neither on the other queries nor on threads.
"""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.routing.candidates import candidate_source
from flexswitch.merging.routing.nearest import rank_all, rank_candidates

_SAMPLED = 1024  # vectors that tell where all of them are
_MARGIN = 4  # candidates beyond those that are wanted
_UNIT = 2.0**-24  # relative rounding of one float32 operation
_SMALLEST, _LARGEST = 2.0**-124, 2.0**124  # squares between them neither vanish nor overflow in float32


class Neighbours(NamedTuple):
    """distances: (query, count) float64; positions: (query, count) int64; the nearest first."""

    distances: NDArray[np.float64]
    positions: NDArray[np.int64]


class Search(Protocol):
    """Vectors that are searched."""

    @property
    def vectors(self) -> FloatArray:
        """All vectors, (vector, width) float32."""

    @property
    def recall(self) -> float:
        """The share of the nearest that it finds."""

    def __len__(self) -> int:
        """Returns how many vectors there are."""

    def search(self, queries: FloatArray, count: int) -> Neighbours:
        """Returns the `count` nearest vectors of each query (query, width), or all where there are fewer."""

    def add(self, vectors: FloatArray) -> None:
        """Appends vectors; their positions follow those there are."""

    def remove(self, positions: NDArray[np.int64]) -> None:
        """Drops the vectors at some positions; those behind them move up."""


class NeighbourSearch:
    """Vectors (vector, width) float32, searched on a device; of equal distances the smaller position first.

    Searches may run in several threads, but not while vectors are added or removed.
    """

    recall = 1.0

    def __init__(self, vectors: FloatArray, device: str = "cpu") -> None:
        self.vectors: FloatArray = np.empty((0, vectors.shape[1]), np.float32)
        self._centre = _centre(vectors)
        self._source = candidate_source(vectors.shape[1], device)
        self.add(vectors)

    def __len__(self) -> int:
        return len(self.vectors)

    def add(self, vectors: FloatArray) -> None:
        """Appends vectors; their positions follow those there are."""
        added = np.ascontiguousarray(vectors, np.float32)
        self.vectors = np.concatenate([self.vectors, added])
        if len(added):
            self._source.add(self._centred(added))

    def remove(self, positions: NDArray[np.int64]) -> None:
        """Drops the vectors at some positions; those behind them move up."""
        if len(positions):
            self.vectors = np.delete(self.vectors, positions, axis=0)
            self._source.remove(np.unique(positions))

    def search(self, queries: FloatArray, count: int) -> Neighbours:
        """Returns the `count` nearest vectors of each query (query, width), or all where there are fewer."""
        queries = np.ascontiguousarray(queries, np.float32)
        count = min(count, len(self))
        squares = np.empty((len(queries), count))
        positions = np.empty((len(queries), count), np.int64)
        if len(queries) and count:
            for row in np.flatnonzero(~self._search_candidates(queries, squares, positions)):
                rank_all(self.vectors, queries[row], squares[row], positions[row])
        return Neighbours(np.sqrt(squares), positions)

    def _search_candidates(
        self, queries: FloatArray, squares: NDArray[np.float64], positions: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Fills in the nearest among candidates; returns for which queries no other one can be as near."""
        wanted = squares.shape[1] + _MARGIN
        if wanted >= len(self) or wanted > self._source.most:
            return np.zeros(len(queries), np.bool_)
        centred = self._centred(queries)
        candidates, farthest = self._source.nearest(centred, wanted)
        found = candidates.min(1) >= 0  # FAISS finds nothing where distances overflow
        rank_candidates(self.vectors, queries, np.where(found[:, None], candidates, 0), squares, positions)
        lengths = np.linalg.norm(centred.astype(np.float64), axis=1)
        reach = np.square(2 * lengths + np.sqrt(squares[:, -1]))  # (‖q‖ + ‖x‖)² of an x as near as the last
        rounding = self._roundings * (_UNIT * reach + _SMALLEST)
        proved: NDArray[np.bool_] = found & (farthest > squares[:, -1] + rounding) & (reach < _LARGEST)
        return proved

    @property
    def _roundings(self) -> float:
        """How many roundings of (‖x‖ + ‖q‖)² a squared distance in float32 may be off.

        It is ‖x‖² + ‖q‖² - 2xq in any order of additions, of vectors rounded when they were centred.
        """
        return 1.01 * float(self.vectors.shape[1]) + 16

    def _centred(self, vectors: FloatArray) -> FloatArray:
        with np.errstate(over="ignore"):  # what becomes infinite is found to be out of reach
            return (vectors - self._centre).astype(np.float32)


def nearest_others(search: Search, positions: NDArray[np.int64], count: int) -> Neighbours:
    """Returns the nearest of the other vectors for some of those that are searched, (position, count).

    Of at least two vectors; where there are no more than `count` others, all of them.
    """
    count = min(count, len(search) - 1)
    distances, found = search.search(search.vectors[positions], count + 1)
    other = found != positions[:, None]  # (position, count + 1)
    other[other.all(1), -1] = False  # behind so many equal ones that the vector itself was not found
    shape = (len(positions), count)
    return Neighbours(distances[other].reshape(shape), found[other].reshape(shape))


def drawn(vectors: FloatArray, count: int) -> NDArray[np.int64]:
    """Returns sorted positions of some vectors, the same again; all of them where there are no more."""
    generator = np.random.Generator(np.random.PCG64(0))
    return np.sort(generator.permutation(len(vectors))[:count])


def _centre(vectors: FloatArray) -> NDArray[np.float64]:
    """Returns a point amid the vectors, (width,): around it they are short, and rounding loses little.

    The median of some of them, which a few far ones do not move.
    """
    if not len(vectors):
        return np.zeros(vectors.shape[1])
    some = vectors[:: -(-len(vectors) // _SAMPLED)]
    centre: NDArray[np.float64] = np.median(some.astype(np.float64), axis=0)
    return centre
