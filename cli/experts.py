"""Which experts of a fused tensor a task changes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flexswitch.codecs.format.container import Artifact


def changed_experts(artifact: "Artifact", name: str) -> dict[str, int]:
    """Returns the kept entries of each expert that keeps any.

    None for a tensor that does not hold experts, and for one of which all change by a multiple of the base's.
    The experts of a fused tensor are its first dimension.
    """
    record = artifact.header.tensors[name]
    shape = record.shape
    if len(shape) < 3 or record.base_factor or "experts" not in name.split("."):
        return {}
    import numpy as np

    from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector  # it loads torch

    whole = np.concatenate(list(ArtifactVector(artifact).blocks(name)))
    counts = np.count_nonzero(whole.reshape(shape[0], -1), axis=1)
    return {str(expert): int(counts[expert]) for expert in np.flatnonzero(counts)}
