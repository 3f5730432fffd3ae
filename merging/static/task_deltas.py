"""What a static merge reads: the deltas of all tasks side by side, block by block, in bounded memory.

A method is a function of a `TensorDeltas` that returns a `Combination`. Every result is the same whatever the
number of threads and the size of blocks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.threads import DEFAULT_MEMORY, map_in_order
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.floating import is_floating
from flexswitch.merging.methods.settings import ByTask
from flexswitch.merging.task_vectors.task_vector import TaskVector, block_ranges, delta_tensor

Found = TypeVar("Found")

_LEAST_ENTRIES, _MOST_ENTRIES = 1 << 12, 1 << 18  # of a block: below, calls cost more than their work
_LARGEST_SUM = 2.0**62  # of the largest entries of all tasks; its square, 2^124, is far from infinity
_COPIES = 5  # a block's deltas as they are read, side by side, and what a method makes of them


class Block(NamedTuple):
    """A run of a tensor's entries: its start, its deltas (task, entry) and the base (entry,), in float32."""

    start: int
    deltas: Tensor
    base: Tensor


Trim = Callable[[int, Iterator[FloatArray]], Iterator[FloatArray]]


class Combination(NamedTuple):
    """How a tensor is merged.

    combine: a block → its merged delta, float32 (entry,); called from several threads. trim: (task, blocks of
    its delta) → blocks of the delta that `combine` sees, of the same lengths.
    """

    combine: Callable[[Block], Tensor]
    trim: Trim | None = None


class ModelDeltas:
    """The task vectors that are merged onto a base; a tensor that a task lacks has a delta of zeros.

    names: the tensors that are merged, in name order. memory: bytes that the blocks in progress may take.
    method: that merges them, for messages.
    """

    def __init__(
        self,
        base: Checkpoint,
        vectors: Mapping[str, TaskVector],
        names: Sequence[str],
        jobs: int,
        memory: int = DEFAULT_MEMORY,
        method: str = "a merge",
    ) -> None:
        self.method = method
        self.base, self.tasks, self.vectors = base, tuple(vectors), tuple(vectors.values())
        self.names = tuple(name for name in names if _can_change(base, name))
        self.jobs, self.memory = jobs, memory
        fitting = memory // (4 * _COPIES * (len(vectors) + 1) * (jobs + 2))
        self.block_entries = min(_MOST_ENTRIES, max(_LEAST_ENTRIES, 1 << max(0, fitting.bit_length() - 1)))
        self.weights: dict[str, tuple[float, ...]] = {}  # tensor → the tasks' weights, in their order
        self._kept: dict[object, Any] = {}

    @property
    def entries(self) -> int:
        """The number of entries of all tensors."""
        return sum(self.base.tensors[name].entries for name in self.names)

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """The threads; what runs in them never waits for another of them."""
        return ThreadPoolExecutor(self.jobs)

    def tensor(self, name: str) -> "TensorDeltas":
        """Returns one tensor's deltas."""
        return TensorDeltas(self, name)

    def weights_of(self, name: str) -> tuple[float, ...]:
        """Returns the tasks' weights in one tensor, 1 unless they have been given."""
        return self.weights.get(name, (1.0,) * len(self.tasks))

    def each(self, work: Callable[[str, int], Found]) -> Iterator[tuple[int, Found]]:
        """Yields (task, what `work` finds of a tensor's name and a task), in a fixed order."""
        pairs = [
            (name, task)
            for name in self.names
            for task, vector in enumerate(self.vectors)
            if name in vector.tensors
        ]
        found = map_in_order(lambda pair: work(*pair), pairs, self.jobs)
        for (_, task), each in zip(pairs, found, strict=True):
            yield task, each

    def once(self, key: object, compute: Callable[[], Found]) -> Found:
        """Returns what is computed for a key, once for the whole model."""
        if key not in self._kept:
            self._kept[key] = compute()
        found: Found = self._kept[key]
        return found


class TensorDeltas:
    """One tensor's change under every task."""

    def __init__(self, model: ModelDeltas, name: str) -> None:
        self.model, self.name = model, name
        self.shape = model.base.tensors[name].shape
        self.entries = model.base.tensors[name].entries
        self._read: list[Block] = []

    @property
    def tasks(self) -> list[int]:
        """The tasks that may have changed the tensor."""
        return [task for task, vector in enumerate(self.model.vectors) if self.name in vector.tensors]

    @property
    def weights(self) -> tuple[float, ...]:
        """The tasks' weights, in their order."""
        return self.model.weights_of(self.name)

    def by_task(self, value: ByTask) -> tuple[float, ...]:
        """Returns a setting's value for each task."""
        if isinstance(value, (int, float)):
            return (float(value),) * len(self.model.tasks)
        return tuple(value)

    def task_blocks(self, task: int) -> Iterator[FloatArray]:
        """Yields one task's delta in flat float32 blocks."""
        vector, size = self.model.vectors[task], self.model.block_entries
        if self.name in vector.tensors:
            yield from vector.blocks(self.name, size)
            return
        for start, stop in block_ranges(self.entries, size):
            yield np.zeros(stop - start, np.float32)

    def blocks(self, trim: Trim | None = None, *, is_last: bool = False) -> Iterator[Block]:
        """Yields the deltas of all tasks side by side; the tasks are read on several threads.

        A tensor that fits in a quarter of the memory is kept for the next reading, until the last one.
        """
        if self._read and trim is None:
            yield from self._read
        else:
            fits = 16 * (len(self.model.tasks) + 1) * self.entries <= self.model.memory
            keep = fits and trim is None and not is_last
            read = []
            for block in self._blocks(trim):
                read += [block] if keep else []
                yield block
            self._read = read
        if is_last:
            self._read = []

    def _blocks(self, trim: Trim | None) -> Iterator[Block]:
        model = self.model
        readers = [self.task_blocks(task) for task in range(len(model.tasks))]
        if trim is not None:
            readers = [trim(task, reader) for task, reader in enumerate(readers)]

        def read(task: int) -> float:
            block = next(readers[task])
            deltas[task] = torch.from_numpy(block)
            return max(-float(block.min()), float(block.max()))

        for start, stop in block_ranges(self.entries, model.block_entries):
            deltas = torch.empty(len(readers), stop - start)
            parts = (
                model.pool.map(read, range(len(readers)))
                if model.jobs > 1
                else map(read, range(len(readers)))
            )
            base = model.base.read(self.name, start, stop).to(torch.float32)
            self._check_size(list(parts))
            yield Block(start, deltas, base)
        for reader in readers:
            next(reader, None)  # a damaged tensor may only be noticed at its end

    def _check_size(self, sizes: Sequence[float]) -> None:
        """Raises: InputError where float32 does not hold the square of a sum of deltas; sizes: by task."""
        found = [size * max(1.0, abs(weight)) for size, weight in zip(sizes, self.weights, strict=True)]
        if not sum(found) <= _LARGEST_SUM:  # NaN, too
            task = max(range(len(found)), key=lambda task: found[task])
            raise InputError(
                f"tensor '{self.name}': its change under '{self.model.tasks[task]}', times its weight, "
                f"reaches {found[task]:.4g}, and {self.model.method} takes {_LARGEST_SUM:.4g} of all tasks "
                f"together, whose squares float32 holds; keep the base's with --exclude '{self.name}'"
            )

    def each_task(self, work: Callable[[int], Found], copies: int = 0) -> list[Found]:
        """Returns what `work` finds of each task; copies: of the whole float32 tensor that it holds."""
        cost = 4 * self.entries * copies
        tasks = range(len(self.model.tasks))
        return list(map_in_order(work, tasks, self.model.jobs, lambda task: cost, self.model.memory))

    def whole(self, task: int) -> Tensor:
        """Returns one task's whole delta, float32 in its shape."""
        vector = self.model.vectors[task]
        return delta_tensor(vector, self.name) if self.name in vector.tensors else torch.zeros(self.shape)


def weighted_sum(deltas: Tensor, weights: Sequence[float]) -> Tensor:
    """Returns Σ_k weight_k · τ_k, float32 (entry,), added in the tasks' order; deltas: (task, entry)."""
    total = torch.zeros(deltas.shape[1])
    for delta, weight in zip(deltas, weights, strict=True):
        total += weight * delta
    return total


def _can_change(base: Checkpoint, name: str) -> bool:
    info = base.tensors[name]
    return bool(info.shape) and is_floating(info.dtype)
