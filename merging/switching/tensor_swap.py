"""Puts other tensors in the place of some of a module's, without copying them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class TensorSwap:
    """The places where a module holds some tensors; a tied one has several. One thread at a time may use it.

    base: name → a parameter or buffer of the module or its submodules.
    """

    def __init__(self, module: nn.Module, base: Mapping[str, Tensor]) -> None:
        names: dict[int, list[str]] = {}
        for name, tensor in base.items():
            names.setdefault(id(tensor), []).append(name)
        self._places: list[tuple[dict[str, Any], str, Tensor, list[str]]] = [
            (held, attribute, tensor, names[id(tensor)])
            for owner in module.modules()
            for held in (owner._parameters, owner._buffers)
            for attribute, tensor in held.items()
            if tensor is not None and id(tensor) in names
        ]

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts tensors in their places, and the module's own where there is none of that name."""
        for held, attribute, own, names in self._places:
            held[attribute] = next((tensors[name] for name in names if name in tensors), own)
