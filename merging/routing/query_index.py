"""Per-sample weights from the nearest exemplars of a query set.

Source: Qi et al. 2025 (arXiv 2412.00054), Auto-Switch; methods, §3.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.routing.query_set import QuerySet

# (queries, count) -> (query, neighbour) positions of the nearest exemplars, the nearest first
Search = Callable[[FloatArray, int], NDArray[np.int64]]


class QueryIndex:
    """Searches a query set by Euclidean distance: FAISS on the CPU; on CUDA its GPU build, else torch.

    neighbours: K, the exemplars that vote; no more than there are.
    """

    def __init__(self, query_set: QuerySet, neighbours: int, device: str = "cpu") -> None:
        self.tasks = query_set.header.tasks
        self._task_ids = query_set.task_ids
        self._neighbours = min(neighbours, len(self._task_ids))
        self._projection = query_set.projection
        self._width = query_set.points.shape[1]
        make_search = _faiss_search if device == "cpu" or _has_gpu_faiss() else _torch_search
        self._search = make_search(query_set.points, device)

    def weights(self, features: Tensor) -> tuple[Tensor, NDArray[np.int64]]:
        """Returns each task's share of the neighbours, (sample, task) float32, and the leading task's id.

        features: (sample, width). Of tasks with the same share the one with the nearer neighbour leads.
        Raises: InputError on another width than the exemplars'.
        """
        features = (
            features.detach().float() if self._projection is None else self._projection(features.detach())
        )
        if features.shape[1] != self._width:
            raise InputError(
                f"features of width {features.shape[1]}, the query index holds width {self._width}"
            )
        queries = np.ascontiguousarray(features.cpu().numpy())
        nearest = self._task_ids[self._search(queries, self._neighbours)]  # (sample, neighbour)
        votes = (nearest[:, :, None] == np.arange(len(self.tasks))).sum(1)  # (sample, task)
        winners = votes[np.arange(len(votes))[:, None], nearest] == votes.max(1, keepdims=True)
        leading = nearest[np.arange(len(votes)), winners.argmax(1)].astype(np.int64)
        return torch.from_numpy((votes / self._neighbours).astype(np.float32)), leading


def _has_gpu_faiss() -> bool:
    import faiss

    return hasattr(faiss, "StandardGpuResources")


def _faiss_search(features: FloatArray, device: str) -> Search:
    """Returns a search by FAISS."""
    import faiss

    index: Any = faiss.IndexFlatL2(features.shape[1])
    if device != "cpu":
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    index.add(np.ascontiguousarray(features))

    def search(queries: FloatArray, count: int) -> NDArray[np.int64]:
        positions: NDArray[np.int64] = index.search(queries, count)[1]
        return positions

    return search


def _torch_search(features: FloatArray, device: str) -> Search:
    """Returns a search by all distances on a torch device."""
    exemplars = torch.from_numpy(features.copy()).to(device)

    def search(queries: FloatArray, count: int) -> NDArray[np.int64]:
        # pair by pair: by way of a matrix product a distance would depend on the other queries
        distances = torch.cdist(
            torch.from_numpy(queries).to(device), exemplars, compute_mode="donot_use_mm_for_euclid_dist"
        )  # (sample, exemplar)
        return distances.sort(dim=1, stable=True).indices[:, :count].cpu().numpy()

    return search
