"""The weight-averaged model of a zoo, as a feature extractor."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import nn

from flexswitch.codecs.format.zoo import Zoo
from flexswitch.merging.models.adapters import Adapter
from flexswitch.merging.models.loading_names import names_inside
from flexswitch.merging.task_vectors.live_weights import LiveWeights
from flexswitch.merging.task_vectors.shared_vector import artifact_vector
from flexswitch.merging.task_vectors.task_vector import delta_tensor


def averaged_encoder(adapter: Adapter, zoo: Zoo, tasks: Sequence[str]) -> nn.Module:
    """Returns the model without a head whose weights are θ + the mean of the tasks' τ̂, in float32.

    Raises: InputError if the zoo lacks one of the tasks.
    """
    encoder = adapter.encoder()
    weights = encoder.state_dict()
    vectors = [artifact_vector(zoo[task]) for task in tasks]
    tensors = sorted(set().union(*(vector.tensors for vector in vectors)))
    for name, own in names_inside(encoder, tensors).items():  # without tensors of a head or pooler
        live = LiveWeights({name: weights[own]})  # what is stored exactly is decoded by the base's numbers
        vectors = [artifact_vector(zoo[task], live) for task in tasks]
        deltas = [delta_tensor(vector, name) for vector in vectors if name in vector.tensors]
        total = reduce(torch.add, deltas).view(weights[own].shape)
        weights[own] += total / len(tasks)  # each step rounds alike on every processor
    return encoder
