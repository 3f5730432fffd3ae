"""Linear layers whose weights are not held: they are made for each use, forward and backward."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from flexswitch.merging.models.loading_names import transformers_models


class WeightSource:
    """Where a layer's weights come from. Copies of the layer share it.

    read: returns them, float32 (out, in); called by several threads.
    """

    read: Callable[[], Tensor]

    def __deepcopy__(self, memo: dict[int, Any]) -> "WeightSource":
        return self


class StreamedLinear(nn.Linear):
    """A linear layer whose `weight` tells the shape alone, on the meta device.

    on_gradient: takes the gradient of the weights from each backward pass through the layer, None for no
    gradient.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.bias = layer.bias
        self.source = WeightSource()
        self.on_gradient: Callable[[Tensor], None] | None = None
        self.requires_grad_(False)

    def forward(self, states: Tensor) -> Tensor:
        """Returns what the layer would with its weights held, bit for bit, and so are its gradients."""
        if self.on_gradient is None or not torch.is_grad_enabled():
            weights = self.source.read()
        else:
            weights = _Weights.apply(states.new_empty(0, requires_grad=True), self)  # type: ignore[no-untyped-call]  # torch has no types for it
        weights = _cast(weights)
        memory = weights.untyped_storage().data_ptr()

        def pack(saved: Tensor) -> Tensor | tuple[Any, ...]:
            if saved.untyped_storage().data_ptr() != memory:
                return saved
            return saved.size(), saved.stride(), saved.storage_offset()

        def unpack(packed: Tensor | tuple[Any, ...]) -> Tensor:
            if isinstance(packed, Tensor):
                return packed
            with torch.no_grad():
                return self.source.read().to(weights_dtype).as_strided(*packed)

        weights_dtype = weights.dtype
        with saved_tensors_hooks(pack, unpack):
            return functional.linear(states, weights, self.bias)


class _Weights(torch.autograd.Function):
    """A layer's weights in a graph that holds none of them."""

    @staticmethod
    def forward(context: Any, anchor: Tensor, layer: StreamedLinear) -> Tensor:
        context.layer = layer
        return layer.source.read()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[None, None]:
        context.layer.on_gradient(gradients[0])
        return None, None


def _cast(weights: Tensor) -> Tensor:
    """Returns weights as autocast gives them to a product."""
    device = weights.device.type
    return weights.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weights


class _MatricesOnMeta(TorchFunctionMode):
    """Puts the matrices that `torch.empty` makes, as layers do for their weights, on the meta device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.empty and args and isinstance(args[0], tuple | list) and len(args[0]) == 2:
            kwargs = kwargs | {"device": "meta"}
        return function(*args, **kwargs)


@contextmanager
def without_matrices() -> Iterator[None]:
    """Leaves the matrices of a module that is made in the context without memory; see `stream_linear`."""
    with _MatricesOnMeta():
        yield


def stream_linear(module: nn.Module, names: Collection[str]) -> None:
    """Replaces the linear layers of a module whose weights are among `names` by streamed ones.

    Heads of language models, which are used in many parts, and weights that several modules share are held.
    The module is one made `without_matrices`; its other matrices get memory, but no values.
    """
    uses = Counter(id(weight) for each in module.modules() for weight in each.parameters(recurse=False))
    models: list[Any] = [model for _, model in transformers_models(module)]
    heads = {id(model.get_output_embeddings()) for model in models}
    memory: dict[int, nn.Parameter] = {}
    for path, parent in list(module.named_modules()):
        for name, child in list(parent.named_children()):
            inside = f"{path}.{name}.weight" if path else f"{name}.weight"
            is_linear = type(child) is nn.Linear and id(child) not in heads and uses[id(child.weight)] == 1
            if is_linear and inside in names:
                parent.register_module(name, StreamedLinear(child))
        for name, weight in parent.named_parameters(recurse=False):
            if weight.is_meta and not isinstance(parent, StreamedLinear):
                held = memory.setdefault(id(weight), nn.Parameter(torch.empty(weight.shape), False))
                parent.register_parameter(name, held)


def streamed_layers(module: nn.Module) -> dict[str, StreamedLinear]:
    """Returns the streamed layers by the names of their weights in the module."""
    layers = module.named_modules()
    return {f"{name}.weight": layer for name, layer in layers if isinstance(layer, StreamedLinear)}
