"""A module again, sharing every tensor with the first: its own structure, hooks and methods, no memory."""

import copy

from torch import nn


def replica(module: nn.Module) -> nn.Module:
    """Returns a copy of a module whose parameters and buffers are those of the module itself."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    made: nn.Module = copy.deepcopy(module, dict(shared))
    return made
