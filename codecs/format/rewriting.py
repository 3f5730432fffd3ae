"""Writes an artifact again, with another header or its tensors in another stored form."""

from collections.abc import Iterable
from pathlib import Path

from flexswitch.codecs.format.artifact_writer import ArtifactWriter, PackedTensor
from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.records import ArtifactHeader


def rewrite_artifact(
    artifact: Artifact, path: Path, header: ArtifactHeader, tensors: Iterable[PackedTensor]
) -> None:
    """Writes an artifact under a header of its own.

    tensors: one for each compressed tensor of the artifact, in the same order. Extras, and tensors that are
    stored exactly, stay as they are. Raises: DecodeError.
    """
    with ArtifactWriter(path) as writer:
        for name in artifact.header.extras:
            writer.add_extra(name, artifact.packed_extra(name))
        for name, packed in zip(artifact.header.tensors, tensors, strict=True):
            writer.add_tensor(name, packed)
        for name in artifact.header.exact:
            writer.add_tensor(name, artifact.packed_exact(name))
        writer.finish(header)
