"""Tokens without the padding among them, in the place of a whole tensor between the layers of a module.

The idea is ModernBERT's unpadding (Warner et al. 2024, arXiv 2412.13663, §2.1.2), without its change of the
module: operations that treat every token alone are made of fewer tokens, all others see the whole tensor.
"""

from collections.abc import MutableMapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from flexswitch.merging.switching.padding import Padding

_LAYERS = {functional.linear, functional.layer_norm, functional.rms_norm}  # beside pointwise operations
_OF_MEMORY = {
    Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr, Tensor.untyped_storage
}  # fmt: skip


class UnpaddedTensor(Tensor):
    """A tensor (row, token, …) that holds the tokens that are no padding.

    Linear layers, norms over the last dimension and pointwise operations give another such tensor. Any other
    operation, and any that changes this one, is given the whole tensor, its padding zeros, which this one
    holds from then on.
    """

    padding: Padding
    _tokens: Tensor | None  # (real token, …)
    _whole: Tensor | None  # either of the two is there

    def __new__(cls, tokens: Tensor, padding: Padding) -> Self:
        """tokens: (real token, …), those that `padding.taken` gives."""
        shape = (*padding.marks.shape, *tokens.shape[1:])
        made: Self = Tensor._make_wrapper_subclass(cls, shape, dtype=tokens.dtype, device=tokens.device)
        made.padding, made._tokens, made._whole = padding, tokens, None
        return made

    def whole(self) -> Tensor:
        """Returns all tokens; what is changed in them is changed here."""
        if self._tokens is not None:
            self._whole, self._tokens = self.padding.whole(self._tokens), None
            self.padding.note_whole(self._whole)
        assert self._whole is not None
        return self._whole

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answers a function of torch, before it is made up of operations."""
        options = kwargs or {}
        tokens = real_tokens(args[0]) if args else None
        if func in _LAYERS and tokens is not None:
            others = (*args[1:], *options.values())
            if not any(isinstance(each, UnpaddedTensor) for each in others) and _is_of_tokens(func, args):
                return UnpaddedTensor(func(tokens, *args[1:], **options), args[0].padding)
        if func in _OF_MEMORY:
            return func(*whole(args), **options)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **options)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch takes a class method
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Answers an operation."""
        options = kwargs or {}
        given = _pointwise_tokens(func, args, options)
        if given is None:
            return func(*whole(args), **whole(options))
        tokens, padding = given
        return UnpaddedTensor(func(*tokens, **options), padding)


def real_tokens(value: Any) -> Tensor | None:
    """Returns the real tokens of an unpadded tensor, None of anything else."""
    return value._tokens if isinstance(value, UnpaddedTensor) else None


def whole(value: Any) -> Any:
    """Returns a value, or a tuple, list or mapping of values, with whole tensors for unpadded ones."""
    if isinstance(value, UnpaddedTensor):
        return value.whole()
    if isinstance(value, MutableMapping):
        for name, part in list(value.items()):
            if (found := whole(part)) is not part:
                value[name] = found
    elif isinstance(value, tuple | list):
        parts = [whole(part) for part in value]
        if any(part is not found for part, found in zip(value, parts, strict=True)):
            return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    return value


def _is_of_tokens(func: Any, args: tuple[Any, ...]) -> bool:
    """Returns whether a layer works on the last dimension alone, and that is not over tokens."""
    return args[0].dim() > 2 and (func is functional.linear or (len(args) > 1 and len(args[1]) == 1))


def _pointwise_tokens(
    func: Any, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[list[Any], Padding] | None:
    """Returns an operation's arguments for the real tokens alone, None where it has to have the whole."""
    unpadded = [each for each in args if isinstance(each, UnpaddedTensor)]
    if torch.Tag.pointwise not in func.tags or func._schema.is_mutable or not unpadded:
        return None
    if any(isinstance(each, tuple | list) for each in args) or any(
        isinstance(each, Tensor | tuple | list) for each in options.values()
    ):
        return None
    first = unpadded[0]
    found = [_tokens_beside(each, first) if isinstance(each, Tensor) else each for each in args]
    if any(own is None and each is not None for each, own in zip(args, found, strict=True)):
        return None
    return found, first.padding


def _tokens_beside(tensor: Tensor, first: UnpaddedTensor) -> Tensor | None:
    """Returns what of a tensor meets another one's real tokens, None where that has to be whole."""
    if isinstance(tensor, UnpaddedTensor):
        return tensor._tokens if tensor.padding is first.padding and tensor.dim() == first.dim() else None
    if tensor.dim() < first.dim() - 1:
        return tensor
    if tensor.dim() > first.dim():
        return None
    return first.padding.meeting(tensor if tensor.dim() == first.dim() else tensor[None])
