"""A model whose weights pass their gates, replicated for the shards of a batch.

All replicas share the storage of the weights, which are written once per step. A replica reduces the gradient
of a tensor to the few sums that training needs as soon as autograd has computed it. So each shard holds the
gradient of one tensor at most, and the graph holds nothing per entry of the delta.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flexswitch.codecs.threads import ParallelMap
from flexswitch.merging.flex_switch.delta_rows import DeltaRows
from flexswitch.merging.flex_switch.gated_tensor import GatedTensor, GateGradients, Gates, gated_weights
from flexswitch.merging.models.fused_tensors import Place
from flexswitch.merging.models.replica import replica

Loss = Callable[[nn.Module], Tensor]  # the loss of some examples, a scalar


class GatedModel:
    """A model and its gated tensors. Gradients are with respect to the gates that were set last.

    weights: of each tensor, or None if the model lacks it.
    """

    def __init__(
        self, model: nn.Module, tensors: Sequence[DeltaRows], places: Mapping[str, Place], shards: int
    ) -> None:
        """Takes a model with the base's weights. places: tensor → its place, for those that the model has."""
        self.model = model.requires_grad_(False)
        state = model.state_dict(keep_vars=True)
        found = [places.get(tensor.name) for tensor in tensors]
        self.weights: list[GatedTensor | None] = [
            None if place is None else gated_weights(tensor, _part(state[place.name].detach(), place))
            for tensor, place in zip(tensors, found, strict=True)
        ]
        self.gates: list[Gates] = []
        trained: dict[str, _Trained] = {}
        for number, place in enumerate(found):
            weight = None if place is None else state[place.name]
            if place is not None and isinstance(weight, nn.Parameter):
                trained.setdefault(place.name, _Trained(weight, {})).places[number] = place
        self._replicas = [_Replica(self, model, trained) for _ in range(shards)]

    def backward_all(
        self, losses: Sequence[Loss], parallel_map: ParallelMap
    ) -> list[tuple[float, list[GateGradients | None]]]:
        """Returns each shard's loss and the gradients of each tensor's gates, or None if it has none."""
        return parallel_map(lambda shard: self._replicas[shard].backward(losses[shard]), len(losses))


class _Trained(NamedTuple):
    """A parameter, and the places in it of tensors, by their numbers."""

    parameter: nn.Parameter
    places: dict[int, Place]


def _part(tensor: Tensor, place: Place) -> Tensor:
    """Returns a part of a tensor, flat, or the whole of it in its shape."""
    whole = tensor.is_sparse or place.stop - place.start == tensor.numel()
    return tensor if whole else place.of(tensor.contiguous())


class _Replica:
    """A copy of the model that shares every tensor; gated ones are leaves of the copy's own graph."""

    def __init__(self, gated: GatedModel, model: nn.Module, trained: Mapping[str, _Trained]) -> None:
        self._gated = gated
        self._model = replica(model)
        leaves = {id(each.parameter): nn.Parameter(each.parameter.data) for each in trained.values()}
        for module in list(self._model.modules()):
            for name, parameter in list(module.named_parameters(recurse=False)):
                if id(parameter) in leaves:
                    setattr(module, name, leaves[id(parameter)])
        for each in trained.values():
            hook, leaf = self._reducer(each.places), leaves[id(each.parameter)]
            leaf.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        _make_embeddings_sparse(self._model)
        self._slopes: list[GateGradients | None] = []

    def backward(self, loss: Loss) -> tuple[float, list[GateGradients | None]]:
        self._slopes = [None] * len(self._gated.weights)
        with torch.enable_grad():
            found = loss(self._model)
            found.backward()  # type: ignore[no-untyped-call]
        return float(found.detach()), self._slopes

    def _reducer(self, places: Mapping[int, Place]) -> Callable[[Tensor], None]:
        def reduce(leaf: Tensor) -> None:
            gradient, leaf.grad = leaf.grad, None
            for number, place in places.items() if gradient is not None else ():
                weights = self._gated.weights[number]
                if gradient is not None and weights is not None:
                    part = _part(gradient, place)
                    self._slopes[number] = weights.reduce(self._gated.gates[number], part)

        return reduce


def _make_embeddings_sparse(model: nn.Module) -> None:
    """Makes the gradients of embeddings sparse, unless the table is shared with another module."""
    uses = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    for module in model.modules():
        if isinstance(module, nn.Embedding) and uses[id(module.weight)] == 1:
            module.sparse = True
