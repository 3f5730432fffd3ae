"""The model that a training runs: made, and loaded with the weights of a base and a task vector."""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

import torch
from torch import nn

from flexswitch.codecs.format.extra_forms import PackedExtra, unpacked_extra
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.flex_switch.objective import Objective
from flexswitch.merging.models.adapters import is_built_in
from flexswitch.merging.models.fused_tensors import Place, places_inside
from flexswitch.merging.models.loading import load_weights
from flexswitch.merging.models.loading_names import names_inside
from flexswitch.merging.models.streamed_linear import stream_linear, streamed_layers, without_linear_weights
from flexswitch.merging.task_vectors.raw_tensors import to_torch
from flexswitch.merging.task_vectors.restore import restored_tensors
from flexswitch.merging.task_vectors.task_vector import TaskVector


def untrained_model(
    objective: Objective, vector: TaskVector, streamed: Checkpoint | None, held: Collection[str]
) -> nn.Module:
    """Returns the model without a task's weights, frozen.

    streamed: the base whose linear layers' weights are not held, but for those that `held` names. Frozen, as
    torch chooses another product for weights that require gradients, even where it computes none.
    """
    adapter = objective.adapter
    if objective.goal == "mse":
        return adapter.encoder().requires_grad_(False)
    if streamed is None or objective.device != "cpu" or not is_built_in(adapter):
        return adapter.model(vector.model.config, vector.extras).requires_grad_(False)
    with without_linear_weights():
        model = adapter.model(vector.model.config, vector.extras).requires_grad_(False)
    inside = _inside(objective)
    names = [inside(vector.model.finetuned_name(name)) for name in streamed.tensors]
    own = names_inside(model, [inside(name) for name in vector.extras]).values()
    stream_linear(model, set(names_inside(model, names).values()) - {*own, *held})
    return model


def _inside(objective: Objective) -> Callable[[str], str]:
    """Returns the function from a fine-tuned parameter's name to its name in the model."""
    return (lambda name: name) if objective.goal == "mse" else objective.adapter.parameter_name


def places_of(objective: Objective, vector: TaskVector, model: nn.Module) -> dict[str, Place]:
    inside = _inside(objective)
    named = {name: inside(vector.model.finetuned_name(name)) for name in vector.tensors}
    found = places_inside(model, {named[name]: info.shape for name, info in vector.tensors.items()})
    return {name: found[inner] for name, inner in named.items() if inner in found}


def load_model(
    objective: Objective,
    model: nn.Module,
    base: Checkpoint,
    vector: TaskVector,
    lambda_: float,
    extras: Mapping[str, PackedExtra] = MappingProxyType({}),
) -> None:
    inside, restored = _inside(objective), restored_tensors(base, vector, lambda_, torch.float32)
    outputs = {inside(name): output for name, output in restored.items()}
    layers, weights = streamed_layers(model), {}
    places = names_inside(model, list(outputs)) if layers else {}
    for name, output in outputs.items():
        layer = layers.get(places.get(name, ""))
        if layer is None:
            weights[name] = output.whole()
        else:
            layer.source.read, weights[name] = output.whole, layer.weight
    for name, stored in extras.items():
        if name in vector.extras:  # and not a file
            weights[inside(name)] = to_torch(unpacked_extra(stored.record, stored.data))
    load_weights(model, weights, vector.source)
