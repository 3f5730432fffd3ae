"""The vector that tasks share, before it is stored, and what it leaves of a task; each is a task vector."""

from collections.abc import Callable, Iterator, Mapping
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.format.records import BaseIdentity, ModelRecord, RawTensor
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.checkpoints.fingerprint import identify
from flexswitch.merging.static.task_deltas import Combination, ModelDeltas, TensorDeltas
from flexswitch.merging.task_vectors.reading_hints import ReadingHints
from flexswitch.merging.task_vectors.task_vector import TaskVector, block_ranges


class UnifiedVector:
    """What a merge makes of all tasks' deltas."""

    def __init__(self, deltas: ModelDeltas, unify: Callable[[TensorDeltas], Combination]) -> None:
        self._deltas, self._unify, self._lock = deltas, unify, Lock()
        self.source, self.parameters = "the shared vector", deltas.entries
        self.hints, self.model = ReadingHints(), ModelRecord()
        changed = set().union(*(vector.tensors for vector in deltas.vectors))
        self.tensors = {name: deltas.base.tensors[name] for name in deltas.names if name in changed}
        self.extras: Mapping[str, TensorInfo] = {}
        self.files: Mapping[str, bytes] = {}

    def identity(self) -> BaseIdentity:
        """Returns the base's identity."""
        return identify(self._deltas.base)

    def blocks(self, name: str, size: int | None = None) -> Iterator[FloatArray]:
        """Yields a tensor's merged delta as flat float32 blocks."""
        deltas = self._deltas.tensor(name)
        with self._lock:  # statistics of the whole model are computed once
            combination = self._unify(deltas)
        waiting = np.empty(0, np.float32)
        merged = (combination.combine(block).numpy() for block in deltas.blocks(combination.trim))
        for start, stop in block_ranges(deltas.entries, size):
            parts = [waiting]
            while sum(map(len, parts)) < stop - start:
                parts.append(next(merged))
            waiting = np.concatenate(parts)
            yield waiting[: stop - start]
            waiting = waiting[stop - start :]
        next(merged, None)  # a damaged tensor may only be noticed at its end

    def exact(self, name: str) -> tuple[NDArray[np.int64], FloatArray]:
        """Returns nothing."""
        return np.empty(0, np.int64), np.empty(0, np.float32)

    def extra(self, name: str) -> RawTensor:
        """Raises: KeyError, as it has no extras."""
        raise KeyError(name)


class OffsetVector:
    """A task vector minus the shared one; both may change tensors that the other lacks."""

    def __init__(self, task: TaskVector, shared: TaskVector) -> None:
        self._task, self._shared = task, shared
        self.source, self.parameters = task.source, task.parameters
        self.hints, self.model = ReadingHints(task.hints.files), task.model
        self.tensors = dict(sorted({**shared.tensors, **task.tensors}.items()))
        self.extras, self.files = task.extras, task.files

    def identity(self) -> BaseIdentity:
        """Returns which base the task belongs to."""
        return self._task.identity()

    def blocks(self, name: str, size: int | None = None) -> Iterator[FloatArray]:
        """Yields the difference of a tensor's deltas, in float32."""
        if name not in self._shared.tensors:
            yield from self._task.blocks(name, size)
            return
        shared = self._shared.blocks(name, size)
        if name not in self._task.tensors:
            yield from (np.float32(0) - values for values in shared)
            return
        for delta, values in zip(self._task.blocks(name, size), shared, strict=True):
            yield delta - values

    def exact(self, name: str) -> tuple[NDArray[np.int64], FloatArray]:
        """Returns nothing."""
        return np.empty(0, np.int64), np.empty(0, np.float32)

    def extra(self, name: str) -> RawTensor:
        """Returns one of the task's extras."""
        return self._task.extra(name)
