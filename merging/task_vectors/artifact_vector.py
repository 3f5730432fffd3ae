"""The task vector that an artifact decodes to."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.records import BaseIdentity, RawTensor
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.task_vectors.apply import Addend
from flexswitch.merging.task_vectors.reading_hints import ReadingHints
from flexswitch.merging.task_vectors.task_vector import block_ranges


class ArtifactVector:
    """The task vector that an artifact decodes to."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.hints = ReadingHints((artifact.path,))
        self.source = str(artifact.path)
        self.model = artifact.header.model
        self.parameters = artifact.header.parameters
        self.tensors = {
            name: TensorInfo(record.dtype, tuple(record.shape))
            for name, record in sorted(artifact.header.tensors.items())
        }
        self.extras = {
            name: TensorInfo(record.dtype, tuple(record.shape))
            for name, record in artifact.header.extras.items()
        }

    def identity(self) -> BaseIdentity:
        """Returns the identity of the base it was made from."""
        return self.artifact.header.base

    def blocks(self, name: str, size: int | None = None) -> Iterator[FloatArray]:
        """Yields a tensor's reconstructed delta, decoding one stored block at a time. Raises: DecodeError."""
        addend = self.addend(name, 1.0)
        for start, stop in block_ranges(self.tensors[name].entries, size):
            block = torch.zeros(stop - start)
            addend.add_to(block)
            yield block.numpy()

    def addend(self, name: str, lambda_: float) -> Addend:
        """Returns λ times a tensor's reconstructed delta, to be added in place. Raises: DecodeError."""
        return Addend(self.artifact, name, lambda_)

    def exact(self, name: str) -> tuple[NDArray[np.int64], FloatArray]:
        """Returns nothing: an artifact holds no corrections."""
        return np.empty(0, np.int64), np.empty(0, np.float32)

    def extra(self, name: str) -> RawTensor:
        """Returns a tensor that is stored raw. Raises: DecodeError."""
        return self.artifact.extra(name)
