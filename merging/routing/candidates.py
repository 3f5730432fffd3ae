"""Candidates for the nearest vectors by float32 arithmetic: FAISS on the CPU and on CUDA, or torch.

A few more than are wanted, and how far the last one is: whoever asks compares them exactly.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.sparse import FloatArray

# From this many queries on a matrix product is quicker than one query after the other (measured).
_PRODUCT_QUERIES = 8
_PAIRS = 1 << 26  # that torch holds distances of at once


class Candidates(NamedTuple):
    """Positions (query, candidate), -1 where none was found, and how far they reach.

    farthest: the largest of their squared distances in float32 arithmetic, (query,).
    """

    positions: NDArray[np.int64]
    farthest: NDArray[np.float64]


class CandidateSource(Protocol):
    """Holds vectors in the order they were added and finds about the nearest, `most` of them at once."""

    most: int

    def nearest(self, queries: FloatArray, count: int) -> Candidates:
        """Returns `count` candidates a query, no more than there are vectors."""

    def add(self, vectors: FloatArray) -> None:
        """Appends vectors (vector, width)."""

    def remove(self, positions: NDArray[np.int64]) -> None:
        """Drops vectors; those behind them move up."""


def candidate_source(width: int, device: str) -> CandidateSource:
    """Returns an empty source: FAISS on the CPU; on CUDA FAISS's build for it where installed, else torch."""
    if device == "cpu":
        return FaissFlat(width)
    return FaissGpuFlat(width) if has_gpu_faiss() else TorchFlat(width, device)


def has_gpu_faiss() -> bool:
    """Returns whether the installed FAISS is one for CUDA."""
    import faiss

    return hasattr(faiss, "StandardGpuResources")


class FaissFlat:
    """All distances, by FAISS on the CPU."""

    most = sys.maxsize

    def __init__(self, width: int) -> None:
        import faiss

        self._index: Any = faiss.IndexFlatL2(width)

    def nearest(self, queries: FloatArray, count: int) -> Candidates:
        """Returns `count` candidates a query."""
        with _matrix_products() if len(queries) >= _PRODUCT_QUERIES else nullcontext():
            squares, positions = self._index.search(queries, count)
        return Candidates(positions, squares[:, -1].astype(np.float64))

    def add(self, vectors: FloatArray) -> None:
        """Appends vectors."""
        self._index.add(vectors)

    def remove(self, positions: NDArray[np.int64]) -> None:
        """Drops vectors."""
        self._index.remove_ids(positions)


class FaissGpuFlat:
    """All distances, by FAISS on CUDA. It removes nothing by itself: what is left is moved there again."""

    most = 2048  # its own limit

    def __init__(self, width: int) -> None:
        import faiss

        self._host: Any = faiss.IndexFlatL2(width)
        self._resources: Any = faiss.StandardGpuResources()
        self._index: Any = faiss.index_cpu_to_gpu(self._resources, 0, self._host)

    def nearest(self, queries: FloatArray, count: int) -> Candidates:
        """Returns `count` candidates a query."""
        squares, positions = self._index.search(queries, count)
        return Candidates(positions, squares[:, -1].astype(np.float64))

    def add(self, vectors: FloatArray) -> None:
        """Appends vectors."""
        self._host.add(vectors)
        self._index.add(vectors)

    def remove(self, positions: NDArray[np.int64]) -> None:
        """Drops vectors."""
        self._host.remove_ids(positions)
        self._index.copyFrom(self._host)


class TorchFlat:
    """All distances, by torch on any device; pair by pair, since a device may round products to 10 bits."""

    most = sys.maxsize

    def __init__(self, width: int, device: str) -> None:
        import torch

        self._vectors = torch.empty((0, width), device=device)

    def nearest(self, queries: FloatArray, count: int) -> Candidates:
        """Returns `count` candidates a query."""
        import torch

        rows = max(1, _PAIRS // len(self._vectors))
        found = [
            torch.cdist(
                torch.from_numpy(queries[start : start + rows]).to(self._vectors.device),
                self._vectors,
                compute_mode="donot_use_mm_for_euclid_dist",
            ).topk(count, largest=False)
            for start in range(0, len(queries), rows)
        ]
        positions = torch.cat([each.indices for each in found]).cpu().numpy()
        distances = torch.cat([each.values.amax(1) for each in found]).double().cpu().numpy()
        return Candidates(positions, distances**2)

    def add(self, vectors: FloatArray) -> None:
        """Appends vectors."""
        import torch

        added = torch.from_numpy(vectors).to(self._vectors.device)
        self._vectors = torch.cat([self._vectors, added])

    def remove(self, positions: NDArray[np.int64]) -> None:
        """Drops vectors."""
        import torch

        kept = torch.ones(len(self._vectors), dtype=torch.bool, device=self._vectors.device)
        kept[torch.from_numpy(positions).to(kept.device)] = False
        self._vectors = self._vectors[kept]


_threshold_lock = threading.Lock()
_threshold_users = 0
_threshold_before = 0


@contextmanager
def _matrix_products() -> Iterator[None]:
    """Lets FAISS compute distances by matrix products.

    It takes them from a number on (of queries, in later releases of their entries) that its wheel sets to
    128,000, which batches hardly reach. The number is the whole process's: the first of several threads
    that search changes it and the last one puts it back, so that none waits for another. It decides about
    speed and last bits, never about an answer.
    """
    import faiss

    global _threshold_users, _threshold_before
    with _threshold_lock:
        if not _threshold_users:
            _threshold_before = faiss.cvar.distance_compute_blas_threshold
            faiss.cvar.distance_compute_blas_threshold = 1
        _threshold_users += 1
    try:
        yield
    finally:
        with _threshold_lock:
            _threshold_users -= 1
            if not _threshold_users:
                faiss.cvar.distance_compute_blas_threshold = _threshold_before
