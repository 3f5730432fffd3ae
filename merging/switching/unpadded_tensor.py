"""A tensor that stores only the tokens that are not padding, for use between the layers of a module.

The idea is ModernBERT's unpadding (Warner et al. 2024, arXiv 2412.13663, §2.1.2), without changes to the
module: operations that treat each token alone run on fewer tokens, all others see the padded tensor.
"""

from collections.abc import MutableMapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from flexswitch.merging.switching.padding import Padding

_TOKEN_LAYERS = {functional.linear, functional.layer_norm, functional.rms_norm}
_MEMORY_ACCESS = {
    Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr, Tensor.untyped_storage
}  # fmt: skip


class UnpaddedTensor(Tensor):
    """A tensor (row, token, …) that stores only the tokens that are not padding.

    Linear layers, norms over the last dimension and pointwise operations return another such tensor. Any
    other operation, and any that changes this tensor, gets the padded tensor, with zeros for
    padding, which is stored from then on.
    """

    padding: Padding
    _tokens: Tensor | None  # (real token, …)
    _padded: Tensor | None  # exactly one of the two is set

    def __new__(cls, tokens: Tensor, padding: Padding) -> Self:
        """tokens: (real token, …), the result of `padding.unpad`."""
        shape = (*padding.mask.shape, *tokens.shape[1:])
        made: Self = Tensor._make_wrapper_subclass(cls, shape, dtype=tokens.dtype, device=tokens.device)
        made.padding, made._tokens, made._padded = padding, tokens, None
        return made

    def padded(self) -> Tensor:
        """Returns the padded tensor; changes to it are changes to this one."""
        if self._tokens is not None:
            self._padded, self._tokens = self.padding.pad(self._tokens), None
            self.padding.note_padded(self._padded)
        assert self._padded is not None
        return self._padded

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Handles a torch function before it is split into operations."""
        options = kwargs or {}
        tokens = real_tokens(args[0]) if args else None
        if func in _TOKEN_LAYERS and tokens is not None:
            others = (*args[1:], *options.values())
            if not any(isinstance(each, UnpaddedTensor) for each in others) and _is_per_token(func, args):
                return UnpaddedTensor(func(tokens, *args[1:], **options), args[0].padding)
        if func in _MEMORY_ACCESS:
            return func(*padded(args), **options)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **options)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch takes a class method
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Handles an operation: on the real tokens where it is pointwise, otherwise on padded tensors."""
        options = kwargs or {}
        given = _pointwise_tokens(func, args, options)
        if given is None:
            return func(*padded(args), **padded(options))
        tokens, padding = given
        return UnpaddedTensor(func(*tokens, **options), padding)


def real_tokens(value: Any) -> Tensor | None:
    """Returns the real tokens of an unpadded tensor, or None for anything else."""
    return value._tokens if isinstance(value, UnpaddedTensor) else None


def padded(value: Any) -> Any:
    """Returns a value, or a tuple, list or mapping of values, with unpadded tensors padded."""
    if isinstance(value, UnpaddedTensor):
        return value.padded()
    if isinstance(value, MutableMapping):
        for name, part in list(value.items()):
            if (found := padded(part)) is not part:
                value[name] = found
    elif isinstance(value, tuple | list):
        parts = [padded(part) for part in value]
        if any(part is not found for part, found in zip(value, parts, strict=True)):
            return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    return value


def _is_per_token(func: Any, args: tuple[Any, ...]) -> bool:
    """Returns whether a layer acts on the last dimension alone, and that is not the token dimension."""
    return args[0].dim() > 2 and (func is functional.linear or (len(args) > 1 and len(args[1]) == 1))


def _pointwise_tokens(
    func: Any, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[list[Any], Padding] | None:
    """Returns a pointwise operation's arguments for the real tokens, or None where it needs padding."""
    unpadded = [each for each in args if isinstance(each, UnpaddedTensor)]
    if torch.Tag.pointwise not in func.tags or func._schema.is_mutable or not unpadded:
        return None
    if any(isinstance(each, tuple | list) for each in args) or any(
        isinstance(each, Tensor | tuple | list) for each in options.values()
    ):
        return None
    first = unpadded[0]
    found = [_aligned_tokens(each, first) if isinstance(each, Tensor) else each for each in args]
    if any(own is None and each is not None for each, own in zip(args, found, strict=True)):
        return None
    return found, first.padding


def _aligned_tokens(tensor: Tensor, first: UnpaddedTensor) -> Tensor | None:
    """Returns a tensor's values for the real tokens of another, or None where that has to be padded."""
    if isinstance(tensor, UnpaddedTensor):
        return tensor._tokens if tensor.padding is first.padding and tensor.dim() == first.dim() else None
    if tensor.dim() < first.dim() - 1:
        return tensor
    if tensor.dim() > first.dim():
        return None
    return first.padding.aligned(tensor if tensor.dim() == first.dim() else tensor[None])
