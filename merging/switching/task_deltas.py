"""The tasks' delta matrices in memory, decoded when they are first needed."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from threading import Lock

import torch

from flexswitch.merging.switching.delta_matrix import DeltaMatrix, read_delta_matrix
from flexswitch.merging.task_vectors.task_vector import TaskVector


class TaskDeltas:
    """A cache of decoded tasks; it drops the least recently used ones, and keeps at least one task.

    base_rms: tensor → the root mean square of the base's weights; other tensors are not decoded; transposed:
    the tensors whose layers multiply by the transpose; device: where the products run; bit_planes: whether
    low-bit matrices are kept as bit planes, None for on every device but the CPU. Thread-safe.
    """

    def __init__(
        self,
        vectors: Sequence[TaskVector],
        base_rms: Mapping[str, float],
        transposed: Set[str],
        cache_bytes: int,
        device: torch.device,
        bit_planes: bool | None = None,
    ) -> None:
        self._vectors, self._base_rms, self._transposed = vectors, base_rms, transposed
        self._cache_bytes, self._device = cache_bytes, device
        self._bit_planes = device.type != "cpu" if bit_planes is None else bit_planes
        self._kept: OrderedDict[int, dict[str, DeltaMatrix]] = OrderedDict()
        self._sizes: dict[int, int] = {}
        self._lock = Lock()

    def __getitem__(self, task: int) -> Mapping[str, DeltaMatrix]:
        """Returns a task's delta matrices by tensor name. Raises: DecodeError."""
        with self._lock:
            if task not in self._kept:
                self._kept[task] = self._decoded(self._vectors[task])
                self._sizes[task] = sum(matrix.nbytes for matrix in self._kept[task].values())
            self._kept.move_to_end(task)
            while len(self._kept) > 1 and self.nbytes > self._cache_bytes:
                del self._sizes[self._kept.popitem(last=False)[0]]
            return self._kept[task]

    @property
    def nbytes(self) -> int:
        """The memory that the decoded tasks take."""
        return sum(self._sizes.values())

    def _decoded(self, vector: TaskVector) -> dict[str, DeltaMatrix]:
        device = self._device if self._bit_planes else None
        return {
            name: read_delta_matrix(vector, name, name in self._transposed, self._base_rms[name], device)
            for name in vector.tensors
            if name in self._base_rms
        }
