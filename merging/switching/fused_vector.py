"""A task vector whose tensors are put together as a module has them, such as the experts of a layer."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.format.records import BaseIdentity, ModelRecord, RawTensor
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.models.fused_tensors import Place
from flexswitch.merging.task_vectors.reading_hints import ReadingHints
from flexswitch.merging.task_vectors.task_vector import TaskVector, block_ranges


class FusedVector:
    """A task vector of which some tensors are parts of larger ones. Read only in whole tensors.

    parts: name of a larger tensor → name of its parts → their places in it; shapes: of the larger tensors.
    """

    def __init__(
        self,
        vector: TaskVector,
        parts: Mapping[str, Mapping[str, Place]],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._vector, self._parts = vector, parts
        self.source, self.parameters, self.hints = vector.source, vector.parameters, vector.hints
        apart = {name for own in parts.values() for name in own}
        kept = {name: info for name, info in vector.tensors.items() if name not in apart}
        self._tensors = kept | {name: TensorInfo("F32", shapes[name]) for name in parts}

    source: str
    parameters: int
    hints: ReadingHints

    @property
    def model(self) -> ModelRecord:
        """How the fine-tuned model differs from its base beside the weights."""
        return self._vector.model

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors that may have changed."""
        return self._tensors

    @property
    def extras(self) -> Mapping[str, TensorInfo]:
        """The task's own tensors."""
        return self._vector.extras

    @property
    def files(self) -> Mapping[str, bytes]:
        """The files beside the weights."""
        return self._vector.files

    def identity(self) -> BaseIdentity:
        """Returns which base it belongs to."""
        return self._vector.identity()

    def blocks(self, name: str, size: int | None = None) -> Iterator[FloatArray]:
        """Yields a tensor's delta as flat float32 blocks."""
        if name not in self._parts:
            yield from self._vector.blocks(name, size)
            return
        whole = np.zeros(self._tensors[name].entries, np.float32)
        for part, place in self._parts[name].items():
            start = place.start
            for block in self._vector.blocks(part):
                whole[start : start + len(block)] = block
                start += len(block)
        for first, last in block_ranges(len(whole), size):
            yield whole[first:last]

    def exact(self, name: str) -> tuple[NDArray[np.int64], FloatArray]:
        """Returns the corrections of a tensor, none of one that is put together."""
        if name in self._parts:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return self._vector.exact(name)

    def extra(self, name: str) -> RawTensor:
        """Returns one of the extras."""
        return self._vector.extra(name)
