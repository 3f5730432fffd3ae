"""Where a module holds tensors that files have apart, such as the experts that transformers fuses."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flexswitch.merging.checkpoints.running_names import RunningModel, converted
from flexswitch.merging.models.loading_names import names_inside, transformers_models


class Place(NamedTuple):
    """A part of a module's tensor: entries [start, stop) of the one with this name."""

    name: str
    start: int
    stop: int

    def of(self, tensor: Tensor) -> Tensor:
        """Returns these entries of a tensor, flat, in its memory."""
        return tensor.view(-1)[self.start : self.stop]


def places_inside(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Place]:
    """Returns checkpoint name → place in the module, for tensors of these shapes that it has, or has fused.

    A tensor that is fused otherwise than row by row is left out.
    """
    own = module.state_dict()
    found = {
        name: Place(inside, 0, own[inside].numel())
        for name, inside in names_inside(module, list(shapes)).items()
    }
    rest = {name: shape for name, shape in shapes.items() if name not in found and len(shape) > 1}
    for path, model in transformers_models(module):
        inner = {name.removeprefix(path): shape for name, shape in rest.items() if name.startswith(path)}
        for name, place in _fused_rows(model, inner).items() if inner else ():
            found[path + name] = place._replace(name=path + place.name)
    return found


def _fused_rows(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Place]:
    """Returns the places of tensors whose rows are together, in their order, in a tensor of the model.

    Each row is numbered, and transformers fuses the numbers as it fuses the rows.
    """
    numbers, first = {}, {}
    count = 0
    for name, shape in shapes.items():
        rows = int(torch.Size(shape[:-1]).numel())
        numbers[name] = torch.arange(count, count + rows).view(*shape[:-1], 1)
        first[name], count = count, count + rows
    running, state, found = RunningModel.of(model), model.state_dict(), {}
    for inside, made in converted(running.loaded, numbers).items():
        order, columns = made.tensor.reshape(-1), state[inside].shape[-1]
        if made.tensor.shape[:-1] != state[inside].shape[:-1]:
            continue
        place_of = torch.empty(count, dtype=torch.int64)
        place_of[order] = torch.arange(len(order))
        for name in made.sources:
            own = numbers[name].reshape(-1)
            start = int(place_of[first[name]])
            together = torch.equal(order[start : start + len(own)], own)
            if together and shapes[name][-1] == columns:
                found[name] = Place(inside, start * columns, (start + len(own)) * columns)
    return found
