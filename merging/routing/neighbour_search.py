"""Nearest neighbours by Euclidean distance: FAISS finds candidates, a float64 pass ranks them.

The flat index computes in float32, and its last bits can change with the batch. So a few more candidates than
wanted are ranked in float64, and a bound on the rounding shows for each query whether a vector outside the
candidates could be as near. Such a query is compared with all vectors: the answer is exact.
From 200,000 vectors on, FAISS's inverted file (IVF) takes over if it finds 99 % of the neighbours.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.compiled import compiled
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.routing.flat_index import Library, flat_index, loaded_faiss

APPROXIMATE_FROM = 200_000  # vectors, 2,000 tasks of 100: from here an IVF saves tens of milliseconds a batch

_LEAST_RECALL, _RECALL_COUNT, _RECALL_SAMPLES = 0.99, 10, 512
_PROBES = (1, 2, 4, 8, 16, 32)  # lists searched for each query
_POINTS_PER_CENTRE = 64  # that k-means uses
_MARGIN = 4  # candidates beyond those wanted
_MOST_ON_GPU = 2048  # candidates that FAISS finds on a GPU
_CENTRE_SAMPLES = 1024
_EPSILON = 2.0**-24  # relative rounding error of one float32 operation
_SMALLEST, _LARGEST = 2.0**-124, 2.0**124  # squares in this range neither vanish nor overflow in float32


class Neighbours(NamedTuple):
    """distances: (query, count) float64; positions: (query, count) int64; the nearest first."""

    distances: NDArray[np.float64]
    positions: NDArray[np.int64]


class NeighbourSearch:
    """Searches vectors (vector, width) float32; of equal distances the lower position comes first.

    device: "cpu" or "cuda"; library: [default: FAISS if it loads and supports the device, else torch];
    approximate_from: the number of vectors from which an IVF is tried, on the CPU only.
    recall: the share of the 10 nearest that is found, 1 for an exact search.
    A query's answer depends neither on other queries nor on threads. Several threads may search at once.
    """

    def __init__(
        self,
        vectors: FloatArray,
        device: str = "cpu",
        library: Library | None = None,
        approximate_from: int = APPROXIMATE_FROM,
    ) -> None:
        self.vectors: FloatArray = np.ascontiguousarray(vectors, np.float32)
        self.recall = 1.0
        self._centre = _centre(self.vectors)
        self._most = _MOST_ON_GPU if device != "cpu" else len(vectors)
        centred = self._centred(self.vectors)
        self._flat = flat_index(centred, device, library)
        self._lists: _InvertedFile | None = None
        many = device == "cpu" and len(vectors) >= approximate_from
        if many and loaded_faiss() is not None and np.isfinite(centred).all():
            self._use_lists(centred)

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: FloatArray, count: int) -> Neighbours:
        """Returns the `count` nearest vectors of each query (query, width), or all if there are fewer."""
        queries = np.ascontiguousarray(queries, np.float32)
        count = min(count, len(self))
        if not len(queries) or not count:
            return Neighbours(np.empty((len(queries), count)), np.empty((len(queries), count), np.int64))
        if self._lists is None or count + _MARGIN >= len(self):
            return self._search_all(queries, count)
        candidates = self._lists.search(self._centred(queries), count + _MARGIN)
        found = candidates.min(1) >= 0  # -1 where the lists hold too few vectors
        distances, positions = self._ranked(queries, np.where(found[:, None], candidates, 0), count)
        if not found.all():
            distances[~found], positions[~found] = self._search_all(queries[~found], count)
        return Neighbours(distances, positions)

    def nearest_others(self, positions: NDArray[np.int64], count: int) -> Neighbours:
        """Returns the nearest other vectors of some of the vectors, (position, count).

        There must be at least two vectors. If there are no more than `count` others, all are returned.
        """
        count = min(count, len(self) - 1)
        distances, found = self.search(self.vectors[positions], count + 1)
        other = found != positions[:, None]  # (position, count + 1)
        other[other.all(1), -1] = False  # so many equal vectors precede it that it was not found itself
        shape = (len(positions), count)
        return Neighbours(distances[other].reshape(shape), found[other].reshape(shape))

    def _search_all(self, queries: FloatArray, count: int) -> Neighbours:
        wanted = count + _MARGIN
        everything = np.arange(len(self))[None]
        if wanted >= len(self) or wanted > self._most:
            return self._ranked(queries, np.repeat(everything, len(queries), 0), count)
        centred = self._centred(queries)
        squares, candidates = self._flat(centred, wanted)
        found = candidates.min(1) >= 0  # FAISS finds nothing where distances overflow
        distances, positions = self._ranked(queries, np.where(found[:, None], candidates, 0), count)
        proved = found & self._proved(centred, squares[:, -1].astype(np.float64), distances[:, -1])
        for row in np.flatnonzero(~proved):
            distances[row], positions[row] = (
                each[0] for each in self._ranked(queries[row : row + 1], everything, count)
            )
        return Neighbours(distances, positions)

    def _ranked(self, queries: FloatArray, candidates: NDArray[np.int64], count: int) -> Neighbours:
        """Returns the nearest of each query's candidates (query, candidate), compared in float64."""
        candidates = np.sort(candidates, axis=1)
        squares = np.empty(candidates.shape)
        _square_distances(self.vectors, queries, candidates, squares)
        order = np.argsort(squares, axis=1, kind="stable")[:, :count]
        nearest = np.take_along_axis(squares, order, 1)
        return Neighbours(np.sqrt(nearest), np.take_along_axis(candidates, order, 1))

    def _proved(
        self, centred: FloatArray, farthest: NDArray[np.float64], last: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Returns for which queries no vector outside the candidates can be among the nearest, (query,).

        farthest: the largest squared float32 distance of a candidate; last: the exact distance of the last
        neighbour. A float32 squared distance is ‖x‖² + ‖q‖² - 2xq, summed in any order, of vectors that were
        rounded when centred: its error is at most `roundings` times 2^-24 (‖x‖ + ‖q‖)².
        """
        roundings = 1.01 * self.vectors.shape[1] + 16
        lengths = np.linalg.norm(centred.astype(np.float64), axis=1)
        reach = np.square(2 * lengths + last)  # (‖q‖ + ‖x‖)² of an x as near as the last neighbour
        bound = np.square(last) + roundings * (_EPSILON * reach + _SMALLEST)
        proved: NDArray[np.bool_] = (farthest > bound) & (reach < _LARGEST)
        return proved

    def _centred(self, vectors: FloatArray) -> FloatArray:
        with np.errstate(over="ignore"):  # infinite values fail the bound
            return (vectors - self._centre).astype(np.float32)

    def _use_lists(self, centred: FloatArray) -> None:
        """Takes the IVF with the fewest probes that reaches the recall, measured on some of the vectors."""
        some = sample_positions(len(self), _RECALL_SAMPLES)
        true = self.nearest_others(some, _RECALL_COUNT).positions
        self._lists = _InvertedFile(centred)
        for probes in _PROBES:
            self._lists.probe(probes)
            found = self.nearest_others(some, _RECALL_COUNT).positions
            self.recall = float((found[:, :, None] == true[:, None, :]).any(1).mean())
            if self.recall >= _LEAST_RECALL:
                return
        self._lists, self.recall = None, 1.0


class _InvertedFile:
    """FAISS's IVF of about 4 √n lists. The lists to search are found exactly, whatever the batch."""

    def __init__(self, vectors: FloatArray) -> None:
        import faiss

        count, width = int(4 * len(vectors) ** 0.5), vectors.shape[1]
        self._index: Any = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, count)
        self._index.cp.max_points_per_centroid = _POINTS_PER_CENTRE
        self._index.cp.min_points_per_centroid = 1
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)  # sums of k-means keep their order
        try:
            self._index.train(vectors)
            self._index.add(vectors)
        finally:
            faiss.omp_set_num_threads(threads)
        self._centres = NeighbourSearch(self._index.quantizer.reconstruct_n(0, count))

    def probe(self, lists: int) -> None:
        """Sets how many lists are searched for each query."""
        self._index.nprobe = min(lists, self._index.nlist)

    def search(self, queries: FloatArray, count: int) -> NDArray[np.int64]:
        """Returns candidates (query, count), -1 where the lists hold too few."""
        distances, lists = self._centres.search(queries, self._index.nprobe)
        found: NDArray[np.int64] = self._index.search_preassigned(
            queries, count, lists, np.square(distances).astype(np.float32)
        )[1]
        return found


def sample_positions(available: int, count: int) -> NDArray[np.int64]:
    """Returns sorted positions, `count` of those available or all of them; always the same ones."""
    generator = np.random.Generator(np.random.PCG64(0))
    return np.sort(generator.permutation(available)[:count])


def _centre(vectors: FloatArray) -> NDArray[np.float64]:
    """Returns the median of some vectors, (width,): vectors are short around it, so rounding loses little."""
    if not len(vectors):
        return np.zeros(vectors.shape[1])
    some = vectors[:: -(-len(vectors) // _CENTRE_SAMPLES)]
    centre: NDArray[np.float64] = np.median(some.astype(np.float64), axis=0)
    return centre


@compiled
def _square_distances(
    vectors: FloatArray, queries: FloatArray, candidates: NDArray[np.int64], squares: NDArray[np.float64]
) -> None:
    """Fills in the squared distance of each candidate (query, candidate), added in a fixed order."""
    whole = vectors.shape[1] - vectors.shape[1] % 4
    for query in range(candidates.shape[0]):
        other = queries[query]
        for place in range(candidates.shape[1]):
            one = vectors[candidates[query, place]]
            a, b, c, d = 0.0, 0.0, 0.0, 0.0  # four sums, so that no addition waits for the one before
            for index in range(0, whole, 4):
                a += (np.float64(one[index]) - np.float64(other[index])) ** 2
                b += (np.float64(one[index + 1]) - np.float64(other[index + 1])) ** 2
                c += (np.float64(one[index + 2]) - np.float64(other[index + 2])) ** 2
                d += (np.float64(one[index + 3]) - np.float64(other[index + 3])) ** 2
            for index in range(whole, vectors.shape[1]):
                a += (np.float64(one[index]) - np.float64(other[index])) ** 2
            squares[query, place] = (a + b) + (c + d)
