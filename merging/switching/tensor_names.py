"""The names that a module has for the tensors that tasks change."""

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.container import Artifact
from flexswitch.merging.models.loading import names_inside
from flexswitch.merging.task_vectors.live_weights import LiveWeights
from flexswitch.merging.task_vectors.shared_vector import artifact_vector
from flexswitch.merging.task_vectors.task_vector import TaskVector


def open_vectors(
    module: nn.Module, zoo: Mapping[str, Artifact | TaskVector], rename: Callable[[str], str], strict: bool
) -> tuple[list[TaskVector], dict[str, str]]:
    """Returns the tasks' vectors, and the module's name for each tensor that they change.

    What they store exactly is decoded by the module's weights. Raises: InputError as `tensor_names` does.
    """
    vectors = [artifact_vector(task) if isinstance(task, Artifact) else task for task in zoo.values()]
    names = tensor_names(module, vectors, rename, strict)
    state = module.state_dict()
    base = LiveWeights({name: state[inside] for name, inside in names.items()})
    return [
        artifact_vector(task, base) if isinstance(task, Artifact) else task for task in zoo.values()
    ], names


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
