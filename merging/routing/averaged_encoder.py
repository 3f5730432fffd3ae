"""The weight-averaged model of a zoo, as a feature extractor."""

from collections.abc import Sequence

import torch
from torch import nn

from flexswitch.codecs.format.zoo import Zoo
from flexswitch.merging.models.adapters import Adapter
from flexswitch.merging.models.loading import names_inside
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.task_vector import delta_tensor


def averaged_encoder(adapter: Adapter, zoo: Zoo, tasks: Sequence[str]) -> nn.Module:
    """Returns the headless model of θ + the mean of these tasks' τ̂, in float32.

    Raises: InputError where the zoo lacks one of them.
    """
    encoder = adapter.encoder()
    weights = encoder.state_dict()
    vectors = [ArtifactVector(zoo[task]) for task in tasks]
    tensors = sorted(set().union(*(vector.tensors for vector in vectors)))
    for unit, own in names_inside(encoder, tensors).items():  # not those of a head or pooler
        deltas = [delta_tensor(vector, unit) for vector in vectors if unit in vector.tensors]
        total = torch.stack(deltas).sum(0).view(weights[own].shape)
        weights[own].add_(total, alpha=1 / len(tasks))
    return encoder
