"""Exhaustive search in float32, by FAISS or by torch: the candidates that `neighbour_search` then ranks.

Every wheel of FAISS owns the module `faiss`. One for GPUs has `StandardGpuResources`, and may raise
RuntimeError when it is imported on a machine without a driver.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.sparse import FloatArray

Library = Literal["faiss", "torch"]
# (queries, count) -> float32 squared distances, the largest last, and positions; both (query, count)
FlatIndex = Callable[[FloatArray, int], tuple[NDArray[np.floating], NDArray[np.int64]]]

_PRODUCT_QUERIES = 8  # from this batch size on, a matrix product is faster than one query at a time
_PAIRS = 1 << 26  # distances that torch holds at once


def flat_index(vectors: FloatArray, device: str, library: Library | None) -> FlatIndex:
    """Returns an index of vectors (vector, width); library: [default: FAISS if it can use the device]."""
    gpu = _gpu_number(device)
    faiss = loaded_faiss() if library != "torch" else None
    if faiss is None or (gpu is not None and gpu >= _gpu_count(faiss)):
        return _torch_index(vectors, device)
    index: Any = faiss.IndexFlatL2(vectors.shape[1])
    if gpu is not None:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), gpu, index)
    index.add(vectors)
    if gpu is not None:
        return _one_at_a_time(index)

    def search(queries: FloatArray, count: int) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
        with _matrix_products() if len(queries) >= _PRODUCT_QUERIES else nullcontext():
            squares, positions = index.search(queries, count)
        return squares, positions

    return search


def _one_at_a_time(index: Any) -> FlatIndex:
    """Returns the search of an index on a GPU, which only one thread may use at the same time."""
    lock = threading.Lock()

    def search(queries: FloatArray, count: int) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
        with lock:
            squares, positions = index.search(queries, count)
        return squares, positions

    return search


def _gpu_number(device: str) -> int | None:
    """Returns the number of a GPU: 1 of "cuda:1", 0 of "cuda"; None of the CPU."""
    return None if device == "cpu" else int(device.partition(":")[2] or 0)


def loaded_faiss() -> Any:
    """Returns FAISS, or None where its import fails, as it may for a wheel for GPUs without a driver."""
    try:
        import faiss
    except (ImportError, RuntimeError):
        return None
    return faiss


def _gpu_count(faiss: Any) -> int:
    """Returns how many GPUs FAISS can use: none if its wheel is for CPUs."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def _torch_index(vectors: FloatArray, device: str) -> FlatIndex:
    """Returns an index without matrix products, which a device may round to 10 bits."""
    import torch

    held = torch.from_numpy(vectors).to(device)
    rows = max(1, _PAIRS // max(1, len(vectors)))

    def search(queries: FloatArray, count: int) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
        parts = torch.split(torch.from_numpy(queries).to(device), rows)
        found = [
            torch.cdist(part, held, compute_mode="donot_use_mm_for_euclid_dist").topk(count, largest=False)
            for part in parts
        ]
        distances = torch.cat([each.values for each in found]).double().cpu().numpy()
        return distances**2, torch.cat([each.indices for each in found]).cpu().numpy()

    return search


_threshold_lock = threading.Lock()
_threshold_users = 0
_threshold_before = 0


@contextmanager
def _matrix_products() -> Iterator[None]:
    """Makes FAISS compute distances by matrix products, which its wheel does only for large batches.

    The threshold belongs to the process. The first of several searching threads changes it and the last one
    restores it. It affects speed and last bits, never an answer.
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
