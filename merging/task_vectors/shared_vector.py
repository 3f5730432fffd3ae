"""The task vector of an artifact whose values are computed by the shared vector of its zoo.

Source: docs/methods.md §6.30.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.records import BaseIdentity, RawTensor
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.reading_hints import ReadingHints


class SharedVector:
    """A task's own values added to those of the shared vector, or times them, in float32."""

    def __init__(self, artifact: Artifact, shared: Artifact, rule: str) -> None:
        self._own, self._shared, self._rule = ArtifactVector(artifact), ArtifactVector(shared), rule
        self.hints = ReadingHints((artifact.path, shared.path))
        self.source = str(artifact.path)
        self.model = artifact.header.model
        self.parameters = artifact.header.parameters
        self.extras = self._own.extras
        others = self._shared.tensors if rule == "sum" else {}
        self.tensors = dict(sorted((others | self._own.tensors).items()))

    @property
    def files(self) -> Mapping[str, bytes]:
        """The files beside the weights. Raises: ArtifactError if they are damaged or may not be written."""
        return self._own.files

    def identity(self) -> BaseIdentity:
        """Returns the identity of the base it was made from."""
        return self._own.identity()

    def blocks(self, name: str, size: int | None = None) -> Iterator[FloatArray]:
        """Yields a tensor's reconstructed delta. Raises: DecodeError."""
        if name not in self._own.tensors:
            yield from self._shared.blocks(name, size)
            return
        own = self._own.blocks(name, size)
        if name not in self._shared.tensors:
            yield from own
            return
        for values, shared in zip(own, self._shared.blocks(name, size), strict=True):
            yield _combined(values, shared, self._rule)

    def exact(self, name: str) -> tuple[NDArray[np.int64], FloatArray]:
        """Returns nothing: an artifact holds no corrections."""
        return self._own.exact(name)

    def extra(self, name: str) -> RawTensor:
        """Returns one of the extras. Raises: DecodeError."""
        return self._own.extra(name)


def artifact_vector(artifact: Artifact, weights: Checkpoint | None = None) -> ArtifactVector | SharedVector:
    """Returns the task vector that an artifact decodes to, with the shared vector of its zoo if it needs it.

    weights: the base, for `ArtifactVector`. Raises: InputError where it was opened outside its zoo.
    """
    needed = artifact.header.shared
    if needed is None:
        return ArtifactVector(artifact, weights)
    if artifact.shared is None:
        raise InputError(
            f"{artifact.path}: its values are computed by the shared vector of its zoo; open the zoo instead "
            "of this file, and give the task by its name"
        )
    return SharedVector(artifact, artifact.shared, needed.rule)


def _combined(values: FloatArray, shared: FloatArray, rule: str) -> FloatArray:
    """Returns the sum or the product, where a task keeps nothing 0; beyond float32, infinities."""
    with np.errstate(over="ignore", invalid="ignore"):
        if rule == "sum":
            return values + shared
        return np.multiply(values, shared, out=np.zeros_like(values), where=values != 0)
