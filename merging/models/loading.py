"""Loads a checkpoint's tensors into a torch module whose tensors may have other names."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from flexswitch.codecs.errors import InputError
from flexswitch.merging.models.fused_tensors import places_inside
from flexswitch.merging.models.loading_names import names_inside


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copies a state into a module; its names may have a prefix, and it may have more tensors.

    Raises: InputError if the module needs a tensor that the state lacks, or a shape differs.
    """
    renamed = {inside: state[name] for name, inside in names_inside(module, list(state)).items()}
    try:
        missing = module.load_state_dict(renamed, strict=False).missing_keys
    except RuntimeError as reason:
        raise InputError(
            f"{source}: does not fit its config.json ({str(reason).splitlines()[-1].strip()})"
        ) from reason
    own = module.state_dict(keep_vars=True)
    loaded = {id(own[name]) for name in renamed}  # a tied tensor has several names
    needed = [name for name in missing if id(own[name]) not in loaded]
    filled = _load_parts(module, state, renamed) if needed else {}
    needed = [name for name in needed if filled.get(name, 0) < own[name].numel()]
    if needed:
        raise InputError(f"{source}: lacks '{needed[0]}', which the model of its config.json has")


def _load_parts(module: nn.Module, state: Mapping[str, Tensor], loaded: Collection[str]) -> dict[str, int]:
    """Copies tensors that the module has fused with others; returns how many entries of each are copied."""
    filled: dict[str, int] = {}
    own = module.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name, place in places_inside(module, shapes).items():
        if place.name not in loaded:
            place.of(own[place.name]).copy_(state[name].reshape(-1))
            filled[place.name] = filled.get(place.name, 0) + place.stop - place.start
    return filled
