"""Computes in float64 with a model whose weights are float32, for results that depend on no machine.

Threads, processors and libraries change the last bits of a sum. In float32 these are about 1e-7 of it, in
float64 about 1e-16, which rounding removes (merging/routing/grid.py).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Float64Computation(TorchFunctionMode):
    """A context in which torch's functions take float32 tensors as float64, and make no float32 ones.

    A weight is converted when a function takes it, so that the model needs no more memory. Embeddings are
    looked up before they are converted.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Returns the function's result, computed in float64."""
        if func is torch.nn.functional.embedding:
            return _in_float64(func(*args, **(kwargs or {})))
        if func is Tensor.float:
            func = Tensor.double
        return func(*_in_float64(args), **_in_float64(dict(kwargs or {})))


def _in_float64(value: Any) -> Any:
    """Returns an argument with float64 in place of float32, as a dtype and in tensors, also of containers."""
    if value is torch.float32:
        return torch.float64
    if isinstance(value, Tensor):
        return value.double() if value.dtype is torch.float32 else value
    if type(value) in (tuple, list):
        return type(value)(_in_float64(each) for each in value)
    if type(value) is dict:
        return {name: _in_float64(each) for name, each in value.items()}
    return value
