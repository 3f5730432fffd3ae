"""The tasks' units in memory, decoded when they are first needed."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from threading import Lock

import torch

from flexswitch.merging.switching.delta_matrix import DeltaMatrix, read_delta_matrix
from flexswitch.merging.task_vectors.task_vector import TaskVector


class TaskDeltas:
    """All tasks' units, decoded when they are first needed; the tasks used last stay while they fit.

    base_sizes: the root mean square of the base's weights in each unit, of those that are kept; turned: the
    units whose layers multiply by the transpose; device: of the products. One task is kept whatever its size.
    May be asked from several threads.
    """

    def __init__(
        self,
        vectors: Sequence[TaskVector],
        base_sizes: Mapping[str, float],
        turned: Set[str],
        cache_bytes: int,
        device: torch.device,
    ) -> None:
        self._vectors = vectors
        self._base_sizes, self._turned = base_sizes, turned
        self._cache_bytes, self._device = cache_bytes, device
        self._kept: OrderedDict[int, dict[str, DeltaMatrix]] = OrderedDict()
        self._sizes: dict[int, int] = {}
        self._lock = Lock()

    def __getitem__(self, task: int) -> Mapping[str, DeltaMatrix]:
        """Returns a task's units by name. Raises: DecodeError."""
        with self._lock:
            if task not in self._kept:
                vector = self._vectors[task]
                units = {
                    unit: read_delta_matrix(
                        vector, unit, unit in self._turned, self._base_sizes[unit], self._device
                    )
                    for unit in vector.tensors
                    if unit in self._base_sizes
                }
                self._kept[task] = units
                self._sizes[task] = sum(each.nbytes for each in units.values())
            self._kept.move_to_end(task)
            while len(self._kept) > 1 and sum(self._sizes.values()) > self._cache_bytes:
                del self._sizes[self._kept.popitem(last=False)[0]]
            return self._kept[task]

    @property
    def nbytes(self) -> int:
        """The memory that the decoded units take."""
        return sum(self._sizes.values())
