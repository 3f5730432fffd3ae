"""The nearest of very many vectors: those in the lists of the nearest centres (an inverted file).

Taken from a size on where exact search takes longer, and only where nearly all neighbours are found so;
what share is measured on the vectors themselves.
"""

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.routing.nearest import rank_lists
from flexswitch.merging.routing.neighbour_search import (
    Neighbours,
    NeighbourSearch,
    Search,
    drawn,
    nearest_others,
)

_LISTED_FROM = 200_000  # vectors: up to there a batch of 64 takes less than 20 ms (benchmarks/search)
_RECALL = 0.99
_PROBES = (1, 2, 4, 8, 16, 32)  # lists that a query looks at
_COUNT = 10  # neighbours that recall is measured on
_MEASURED = 512  # vectors that recall is measured with
_POINTS_A_CENTRE, _ROUNDS = 32, 3  # of k-means
_PART = 1 << 14  # vectors that are assigned to centres at once


def open_search(vectors: FloatArray, device: str) -> Search:
    """Returns an exact search, or one of lists for many vectors whose neighbours they find."""
    exact = NeighbourSearch(vectors, device)
    if device != "cpu" or len(vectors) < _LISTED_FROM:
        return exact
    listed = ListedSearch(exact)
    return listed if listed.recall >= _RECALL else exact


class ListedSearch:
    """Vectors (vector, width) in about 4 √n lists, of which a query looks at the nearest few.

    recall: the share of the 10 nearest others that is found, measured on some of the vectors, by the least
    number of probes that reaches 99 %. An answer depends neither on the other queries nor on threads.
    """

    def __init__(self, exact: NeighbourSearch) -> None:
        self._exact = exact
        self._centres = NeighbourSearch(_means(exact.vectors, int(4 * len(exact) ** 0.5)))
        self._list_of = self._assigned(exact.vectors)  # (vector,)
        self._arrange()
        some = drawn(exact.vectors, _MEASURED)
        true = nearest_others(exact, some, _COUNT).positions
        for self._probes in _PROBES:
            self.recall = _shared(nearest_others(self, some, _COUNT).positions, true)
            if self.recall >= _RECALL:
                break

    @property
    def vectors(self) -> FloatArray:
        """All vectors, (vector, width)."""
        return self._exact.vectors

    def __len__(self) -> int:
        return len(self._exact)

    def search(self, queries: FloatArray, count: int) -> Neighbours:
        """Returns about the `count` nearest vectors of each query (query, width), or all that there are."""
        queries = np.ascontiguousarray(queries, np.float32)
        count = min(count, len(self))
        squares = np.empty((len(queries), count))
        positions = np.empty((len(queries), count), np.int64)
        probed = self._centres.search(queries, self._probes).positions  # (query, probe)
        rank_lists(self._listed, self._original, self._starts, queries, probed, squares, positions)
        distances = np.sqrt(squares)
        few = np.flatnonzero((positions < 0).any(1))  # whose lists hold less than `count`
        distances[few], positions[few] = self._exact.search(queries[few], count)
        return Neighbours(distances, positions)

    def add(self, vectors: FloatArray) -> None:
        """Appends vectors, each to the list of the nearest centre; the centres stay."""
        self._exact.add(vectors)
        added = self.vectors[len(self._list_of) :]
        self._list_of = np.concatenate([self._list_of, self._assigned(added)])
        self._arrange()

    def remove(self, positions: NDArray[np.int64]) -> None:
        """Drops the vectors at some positions; those behind them move up."""
        self._exact.remove(positions)
        self._list_of = np.delete(self._list_of, positions)
        self._arrange()

    def _assigned(self, vectors: FloatArray) -> NDArray[np.int64]:
        return _nearest(self._centres, vectors)

    def _arrange(self) -> None:
        """Puts the vectors of a list one behind the other."""
        self._original = np.argsort(self._list_of, kind="stable")  # (vector,)
        self._listed = self.vectors[self._original]
        lists = np.arange(len(self._centres) + 1)
        self._starts = np.searchsorted(self._list_of[self._original], lists)  # (list + 1,)


def _means(vectors: FloatArray, count: int) -> FloatArray:
    """Returns centres (centre, width) by k-means on some of the vectors; threads change nothing."""
    some = vectors[drawn(vectors, _POINTS_A_CENTRE * count)]
    centres = some[drawn(some, count)]
    for _ in range(_ROUNDS):
        nearest = _nearest(NeighbourSearch(centres), some)
        order = np.argsort(nearest, kind="stable")
        used, starts = np.unique(nearest[order], return_index=True)
        sums = np.add.reduceat(some[order].astype(np.float64), starts, axis=0)
        centres = centres.copy()
        centres[used] = sums / np.bincount(nearest)[used][:, None]
    return centres


def _nearest(centres: NeighbourSearch, vectors: FloatArray) -> NDArray[np.int64]:
    """Returns the nearest centre of each vector, (vector,)."""
    parts = [vectors[start : start + _PART] for start in range(0, len(vectors), _PART)]
    return np.concatenate([centres.search(part, 1).positions[:, 0] for part in parts or [vectors]])


def _shared(found: NDArray[np.int64], true: NDArray[np.int64]) -> float:
    """Returns the share of the true neighbours (vector, count) among those that were found."""
    return float((found[:, :, None] == true[:, None, :]).any(1).mean())
