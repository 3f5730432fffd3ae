"""Copies of a module that share its tensors, so that they take no memory for them."""

import copy

from torch import nn


def replica(module: nn.Module) -> nn.Module:
    """Returns a copy of a module with structure and hooks of its own, and the same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    made: nn.Module = copy.deepcopy(module, dict(shared))
    return made
