"""The names that a module has for a checkpoint's tensors."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from flexswitch.merging.checkpoints.pairing import common_prefix


def names_inside(module: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Returns checkpoint name → module name for the tensors in both; one side may have a prefix."""
    own = {name: name for name in module.state_dict()}
    for path, model in transformers_models(module):
        own |= {path + saved: path + name for saved, name in _saved_names(model).items()}
    prefix, own_prefix = common_prefix(names, list(own))
    known = {name: own_prefix + name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    # A head stands beside the model that has the prefix.
    known |= {name: name for name in names if known.get(name) not in own}
    return {name: own[other] for name, other in known.items() if other in own}


def transformers_models(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields (prefix of the names, model) for the outermost transformers models of a module."""
    transformers = sys.modules.get("transformers")
    if transformers is None:
        return
    if isinstance(module, transformers.PreTrainedModel):
        yield "", module
        return
    for name, child in module.named_children():
        yield from ((f"{name}.{path}", model) for path, model in transformers_models(child))


def _saved_names(model: Any) -> dict[str, str]:
    """Returns saved name → own name: transformers saves many models with the names of an older release.

    A tensor that is converted when it is saved is left out.
    """
    from transformers.core_model_loading import revert_weight_conversion

    state = model.state_dict()
    own = {id(tensor): name for name, tensor in state.items()}
    saved = revert_weight_conversion(model, state)
    return {name: own[id(tensor)] for name, tensor in saved.items() if id(tensor) in own}
