"""Places of whole tensors in a model, for tests of what is trained."""

from collections.abc import Mapping

from torch import nn

from flexswitch.merging.models.fused_tensors import Place


def whole(model: nn.Module, names: Mapping[str, str]) -> dict[str, Place]:
    """Returns tensor → the place of a model's tensor; names: tensor → the model's name for it."""
    state = model.state_dict()
    return {name: Place(inside, 0, state[inside].numel()) for name, inside in names.items()}
