"""A model whose weights pass their gates, replicated for losses that are computed at the same time.

All replicas share the storage of the weights, which are written once per step. A replica reduces the gradient
of a tensor to the few sums that training needs as soon as autograd has computed it. So each holds the
gradient of one tensor at most, and the graph holds nothing per entry of the delta. The weights of streamed
layers are written where they are used, and not held.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flexswitch.codecs.threads import ParallelMap
from flexswitch.merging.flex_switch.delta_rows import DeltaRows
from flexswitch.merging.flex_switch.gated_tensor import (
    GatedTensor,
    GateGradients,
    Gates,
    StreamedGatedTensor,
    gated_weights,
    summed,
)
from flexswitch.merging.models.fused_tensors import Place
from flexswitch.merging.models.replica import replica
from flexswitch.merging.models.streamed_linear import StreamedLinear, streamed_layers

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
        found, layers = [places.get(tensor.name) for tensor in tensors], streamed_layers(model)
        self.gates: list[Gates] = []
        self.weights: list[GatedTensor | None] = []
        trained: dict[str, _Trained] = {}
        for number, (tensor, place) in enumerate(zip(tensors, found, strict=True)):
            if place is None:
                self.weights.append(None)
                continue
            weight, layer = state[place.name], layers.get(place.name)
            if layer is None:
                self.weights.append(gated_weights(tensor, _part(weight.detach(), place)))
            else:
                self.weights.append(self._streamed(tensor, number, layer))
            if isinstance(weight, nn.Parameter):
                trained.setdefault(place.name, _Trained(weight, {})).places[number] = place
        self._free: SimpleQueue[_Replica] = SimpleQueue()
        for _ in range(shards):
            self._free.put(_Replica(self, model, trained))

    def _streamed(self, tensor: DeltaRows, number: int, layer: StreamedLinear) -> StreamedGatedTensor:
        """Returns the tensor of a streamed layer, whose weights are under the gates from now on."""
        gated = StreamedGatedTensor(tensor, layer.source.read)
        layer.source.read = lambda: gated.weights(self.gates[number])
        return gated

    def backward_all(
        self, losses: Sequence[Loss], parallel_map: ParallelMap
    ) -> list[tuple[float, list[GateGradients | None]]]:
        """Returns each loss and its gradients of each tensor's gates, or None if it has none."""

        def run(number: int) -> tuple[float, list[GateGradients | None]]:
            chosen = self._free.get()
            try:
                return chosen.backward(losses[number])
            finally:
                self._free.put(chosen)

        return parallel_map(run, len(losses))


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
        layers = streamed_layers(self._model)
        for name, layer in layers.items():
            layer.on_gradient = self._reducer(trained[name].places) if name in trained else None
        held = [each for name, each in trained.items() if name not in layers]
        leaves = {id(each.parameter): nn.Parameter(each.parameter.data) for each in held}
        for module in list(self._model.modules()):
            for name, parameter in list(module.named_parameters(recurse=False)):
                if id(parameter) in leaves:
                    setattr(module, name, leaves[id(parameter)])
        for each in held:
            hook, leaf = _taking(self._reducer(each.places)), leaves[id(each.parameter)]
            leaf.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        _make_embeddings_sparse(self._model)
        self._slopes: list[GateGradients | None] = []

    def backward(self, loss: Loss) -> tuple[float, list[GateGradients | None]]:
        self._slopes = [None] * len(self._gated.weights)
        with torch.enable_grad():
            found = loss(self._model)
            if found.requires_grad:  # of texts that are cut before their answers, no token is scored
                torch.autograd.backward(found)
        return float(found.detach()), self._slopes

    def _reducer(self, places: Mapping[int, Place]) -> Callable[[Tensor], None]:
        """Returns the function that takes a parameter's gradient, or that of one use of a streamed layer."""

        def reduce(gradient: Tensor) -> None:
            for number, place in places.items():
                weights = self._gated.weights[number]
                if weights is not None:
                    slopes = weights.reduce(self._gated.gates[number], _part(gradient, place))
                    self._slopes[number] = summed([self._slopes[number], slopes])

        return reduce


def _taking(reduce: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """Returns the hook of a leaf that hands its gradient on, and does not hold it."""

    def take(leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        if gradient is not None:
            reduce(gradient)

    return take


def _make_embeddings_sparse(model: nn.Module) -> None:
    """Makes the gradients of embeddings sparse, unless the table is shared with another module."""
    uses = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    for module in model.modules():
        if isinstance(module, nn.Embedding) and uses[id(module.weight)] == 1:
            module.sparse = True
