"""The names that a module has for the tensors that tasks change."""

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import Tensor, nn

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.container import Artifact
from flexswitch.merging.models.fused_tensors import Place, places_inside
from flexswitch.merging.models.loading_names import names_inside
from flexswitch.merging.switching.fused_vector import FusedVector
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
    places = _places(module, vectors, rename)
    names = tensor_names(module, vectors, rename, strict, places)
    state = module.state_dict()
    parts = {name: each.of(state[each.name]).view(_shape(vectors, name)) for name, each in places.items()}
    base = LiveWeights({name: state[inside] for name, inside in names.items() if name not in places} | parts)
    opened = [artifact_vector(task, base) if isinstance(task, Artifact) else task for task in zoo.values()]
    whole = {name: inside for name, inside in names.items() if name not in places}
    whole |= {place.name: place.name for place in places.values()}
    return [_fused(vector, places, state) for vector in opened], whole


def _places(
    module: nn.Module, vectors: Sequence[TaskVector], rename: Callable[[str], str]
) -> dict[str, Place]:
    """Returns the places of changed tensors that the module has fused with others."""
    found: dict[str, Place] = {}
    for vector in vectors:
        named = {rename(vector.model.finetuned_name(name)): name for name in vector.tensors}
        inside = names_inside(module, list(named))
        if len(inside) < len(named):
            shapes = {other: vector.tensors[name].shape for other, name in named.items()}
            places = places_inside(module, shapes)
            found |= {named[other]: place for other, place in places.items() if other not in inside}
    return found


def _fused(vector: TaskVector, places: Mapping[str, Place], state: Mapping[str, Tensor]) -> TaskVector:
    """Returns a task vector with those of its tensors put together that the module has fused."""
    parts: dict[str, dict[str, Place]] = {}
    for name, place in places.items():
        if name in vector.tensors:
            parts.setdefault(place.name, {})[name] = place
    return FusedVector(vector, parts, {name: tuple(state[name].shape) for name in parts}) if parts else vector


def _shape(vectors: Sequence[TaskVector], name: str) -> tuple[int, ...]:
    return next(vector.tensors[name].shape for vector in vectors if name in vector.tensors)


def tensor_names(
    module: nn.Module,
    vectors: Sequence[TaskVector],
    rename: Callable[[str], str],
    strict: bool,
    fused: Collection[str] = (),
) -> dict[str, str]:
    """Returns the module's name for each changed tensor, but for those that it has fused with others.

    Raises: InputError if it is missing or misshapen.
    """
    shapes = {name: info.shape for vector in vectors for name, info in sorted(vector.tensors.items())}
    own = module.state_dict()
    names: dict[str, str] = {}
    for vector in vectors:
        named = {name: rename(vector.model.finetuned_name(name)) for name in vector.tensors}
        inside = names_inside(module, list(named.values()))
        names |= {name: inside[other] for name, other in named.items() if other in inside}
    for name, shape in shapes.items():
        if name in fused or (name not in names and not strict):
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
