"""Linear layers whose weights are not held: they are made for each use, forward and backward."""

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.nn.modules.module import register_module_parameter_registration_hook

from flexswitch.codecs.errors import FlexswitchError
from flexswitch.merging.models.loading_names import transformers_models


class UsedDirectlyError(FlexswitchError):
    """Weights of streamed layers are read other than once in a forward pass, through the layer."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(f"weights of streamed layers are used in other ways: {', '.join(names)}")
        self.names = names


class WeightSource:
    """Where a layer's weights come from. Copies of the layer share it.

    read: returns them, float32 (out, in); called by several threads.
    """

    read: Callable[[], Tensor]

    def __deepcopy__(self, memo: dict[int, Any]) -> "WeightSource":
        return self


# What may be asked of a weight that is not held.
_HEADER = {
    getattr(Tensor, name).__get__
    for name in ("shape", "dtype", "layout", "ndim", "requires_grad", "grad", "grad_fn", "is_meta")
} | {
    getattr(Tensor, name)
    for name in (
        "size",
        "dim",
        "numel",
        "detach",
        "copy_",
        "requires_grad_",
        "is_floating_point",
        "is_complex",
    )
}


_DEVICE = Tensor.device.__get__


class _Absent(nn.Parameter):
    """A weight of which a layer has the shape alone.

    It is no plain one on the meta device, since torch computes noise with these and says nothing.
    """

    inside: str  # its name in the module

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Raises: UsedDirectlyError if the weight's numbers are asked for."""
        own = _first([*args, *(kwargs or {}).values()])
        if function == _DEVICE:
            return torch.device("cpu")  # where the layer makes it
        if function not in _HEADER:
            raise UsedDirectlyError([own.inside])
        with torch._C.DisableTorchFunctionSubclass():
            found = function(*args, **(kwargs or {}))
            return _absent(found, own.inside) if function is Tensor.detach else found


def _absent(weight: Tensor, inside: str) -> _Absent:
    made = _Absent(weight, requires_grad=False)
    made.inside = inside
    return made


def _first(arguments: Any) -> _Absent:
    """Returns the first absent weight among arguments and in their lists."""
    for each in arguments:
        if isinstance(each, _Absent):
            return each
        if isinstance(each, list | tuple) and any(isinstance(inner, _Absent) for inner in each):
            return _first(each)
    raise TypeError("no weight among the arguments")


class StreamedLinear(nn.Linear):
    """A linear layer whose `weight`, of this name in the module, tells the shape alone, on the meta device.

    on_gradient: takes the gradient of the weights from a backward pass, None for no gradient. uses: the
    number of forward passes.
    """

    def __init__(self, layer: nn.Linear, name: str) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight = layer.weight = _absent(self.weight.data, name)
        self.bias = layer.bias
        self.source = WeightSource()
        self.on_gradient: Callable[[Tensor], None] | None = None
        self.uses = 0

    def forward(self, states: Tensor) -> Tensor:
        """Returns what the layer would with its weights held, bit for bit, and so are its gradients."""
        self.uses += 1
        if self.on_gradient is None or not torch.is_grad_enabled():
            weights = self.source.read()
        else:
            # An input that requires gradients, so that the weights do.
            weights = _Weights.apply(states.new_empty(0, requires_grad=True), self)  # type: ignore[no-untyped-call]  # torch gives `apply` no types
        weights = _cast(weights)
        memory, dtype = weights.untyped_storage().data_ptr(), weights.dtype

        def pack(saved: Tensor) -> Tensor | tuple[Any, ...]:
            if saved.untyped_storage().data_ptr() != memory:
                return saved
            return saved.size(), saved.stride(), saved.storage_offset()

        def unpack(packed: Tensor | tuple[Any, ...]) -> Tensor:
            if isinstance(packed, Tensor):
                return packed
            with torch.no_grad():
                return self.source.read().to(dtype).as_strided(*packed)

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


@contextmanager
def without_linear_weights() -> Iterator[None]:
    """Makes linear layers whose weights have no memory until `stream_linear`, in this thread."""
    thread = threading.get_ident()

    def moved(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        is_new = type(module) is nn.Linear and name == "weight" and name not in module._parameters
        if parameter is None or not is_new or threading.get_ident() != thread:
            return None
        return nn.Parameter(parameter.data.to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(moved)  # type: ignore[arg-type]  # torch's type lacks that a hook may return another parameter
    try:
        yield
    finally:
        hook.remove()


def stream_linear(module: nn.Module, names: Collection[str]) -> None:
    """Replaces the linear layers of a module whose weights are among `names` by streamed ones.

    Heads of language models, which are used in many parts, and what several modules share are held.
    The module is one made `without_linear_weights`; those that are held get memory, but no values.
    """
    uses = Counter(id(weight) for each in module.modules() for weight in each.parameters(recurse=False))
    uses += Counter(id(child) for each in module.modules() for child in each._modules.values())
    models: list[Any] = [model for _, model in transformers_models(module)]
    heads = {id(model.get_output_embeddings()) for model in models}
    memory: dict[int, nn.Parameter] = {}
    for path, parent in list(module.named_modules()):
        for name, child in list(parent.named_children()):
            inside = f"{path}.{name}.weight" if path else f"{name}.weight"
            is_linear = type(child) is nn.Linear and id(child) not in heads
            if is_linear and inside in names and uses[id(child.weight)] == uses[id(child)] == 1:
                parent.register_module(name, StreamedLinear(child, inside))
        for name, weight in parent.named_parameters(recurse=False):
            if weight.is_meta and not isinstance(parent, StreamedLinear):
                held = memory.setdefault(id(weight), nn.Parameter(torch.empty(weight.shape), False))
                parent.register_parameter(name, held)


def check_uses(module: nn.Module, run: Callable[[nn.Module], object]) -> None:
    """Raises: UsedDirectlyError if a forward pass uses a streamed layer more than once.

    A layer's gradients would then be added in another order. run: a forward pass, with gradients.
    """
    layers = streamed_layers(module)
    before = {name: layer.uses for name, layer in layers.items()}
    with torch.enable_grad():
        run(module)
    if repeated := [name for name, layer in layers.items() if layer.uses > before[name] + 1]:
        raise UsedDirectlyError(repeated)


def streamed_layers(module: nn.Module) -> dict[str, StreamedLinear]:
    """Returns the streamed layers by the names of their weights in the module."""
    layers = module.named_modules()
    return {f"{name}.weight": layer for name, layer in layers if isinstance(layer, StreamedLinear)}
