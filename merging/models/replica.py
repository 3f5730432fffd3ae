"""Copies of a module that share its tensors, so that they take no memory for them."""

import copy

from torch import Tensor, nn


def replica(module: nn.Module) -> nn.Module:
    """Returns a copy of a module with structure and hooks of its own, and the same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    for part in module.modules():
        computed = (value for value in vars(part).values() if isinstance(value, Tensor) and not value.is_leaf)
        shared |= {id(tensor): tensor.detach() for tensor in computed}  # such as a weight under weight_norm
    made: nn.Module = copy.deepcopy(module, dict(shared))
    return made
