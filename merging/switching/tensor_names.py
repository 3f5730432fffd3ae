"""The names that a module has for the tensors that tasks change."""

from collections.abc import Callable, Sequence

from torch import nn

from flexswitch.codecs.errors import InputError
from flexswitch.merging.models.loading import names_inside
from flexswitch.merging.task_vectors.task_vector import TaskVector


def tensor_names(
    module: nn.Module, vectors: Sequence[TaskVector], rename: Callable[[str], str], strict: bool
) -> dict[str, str]:
    """Returns the module's name for each changed tensor. Raises: InputError if it is missing or misshapen."""
    shapes = {name: info.shape for vector in vectors for name, info in sorted(vector.tensors.items())}
    own = module.state_dict()
    names: dict[str, str] = {}
    for vector in vectors:
        named = {name: rename(vector.model.finetuned_name(name)) for name in vector.tensors}
        inside = names_inside(module, list(named.values()))
        names |= {name: inside[other] for name, other in named.items() if other in inside}
    for name, shape in shapes.items():
        if name not in names and not strict:
            continue
        if name not in names:
            raise InputError(f"the module has no parameter '{name}', which the zoo's tasks change")
        found = list(own[names[name]].shape)
        if found != list(shape):
            raise InputError(
                f"the module's parameter '{names[name]}' has the shape {found}, the zoo's tasks change one "
                f"of shape {list(shape)}"
            )
    return names
