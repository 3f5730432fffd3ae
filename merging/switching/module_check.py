"""Checks that a module holds the base of the tasks that it is to be switched between."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.records import BaseIdentity
from flexswitch.merging.checkpoints.alignment import all_tensors
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.fingerprint import fingerprint
from flexswitch.merging.checkpoints.hashing import open_base
from flexswitch.merging.checkpoints.hub import cached_checkpoint
from flexswitch.merging.checkpoints.pairing import common_prefix
from flexswitch.merging.models.fused_tensors import places_inside
from flexswitch.merging.models.loading_names import names_inside, transformers_models
from flexswitch.merging.switching.own_buffers import is_own
from flexswitch.merging.task_vectors.live_weights import check_live_weights
from flexswitch.merging.task_vectors.task_vector import TaskVector


def check_module(
    module: nn.Module,
    vectors: Sequence[TaskVector],
    names: Mapping[str, str],
    rename: Callable[[str], str],
    base: str | Path | None,
    checked: str | None,
) -> str:
    """Checks a module's tensors against the base that all tasks share; returns its fingerprint.

    They are compared with the base that is given, or else with the one that a transformers model was loaded
    from; where neither is at hand, they have to be exactly the base's, beside the tasks' own. names: tensor →
    the module's name for it; rename: the module's name of a fine-tuned name, up to a prefix; checked: the
    fingerprint of the base that the module is known to hold.

    Raises: InputError.
    """
    first, expected = vectors[0], vectors[0].identity()
    for vector in vectors:
        if vector.identity().fingerprint != expected.fingerprint:
            raise InputError(
                f"{vector.source}: belongs to the base {vector.identity().fingerprint[:12]}, but "
                f"{first.source} to {expected.fingerprint[:12]}; all tasks must share one base"
            )
    if expected.fingerprint == checked:
        return checked
    opened = open_base(base) if base is not None else _found_base(module, first, expected)
    state = module.state_dict()
    if opened is None:
        own = {rename(name) for vector in vectors for name in vector.extras}
        own_inside = names_inside(module, sorted(own)).values()
        heads = {name for name in own_inside if not is_own(module, name)}  # a buffer replaces the base's
        weights = _by_base_name({name: state[name] for name in state if name not in heads}, names)
    else:
        named = {
            name: rename(first.model.finetuned_name(name)) for name in (*opened.tensors, *opened.aliases)
        }
        whole = all_tensors(opened)
        places = places_inside(module, {other: whole[name].shape for name, other in named.items()})
        weights = {
            name: places[other].of(state[places[other].name].contiguous())
            for name, other in named.items()
            if other in places
        }
    check_live_weights(weights, expected, first.source, opened)
    return expected.fingerprint


def _found_base(module: nn.Module, vector: TaskVector, expected: BaseIdentity) -> Checkpoint | None:
    """Returns the base, if the task vector has it open or a transformers model knows where it came from."""
    opened: Checkpoint | None = getattr(vector, "base", None)
    if opened is not None:
        return opened
    for _, model in transformers_models(module):
        source = _source(model)
        try:
            found = open_base(source) if source else None
        except InputError:
            continue  # it has been moved since
        if found is not None and fingerprint(found) == expected.fingerprint:
            return found
    return None


def _source(model: Any) -> Path | None:
    """Returns the folder that a transformers model was loaded from, if it is still there."""
    name, commit = str(model.name_or_path), getattr(model.config, "_commit_hash", None)
    if name and Path(name).exists():
        return Path(name)
    return cached_checkpoint(name, commit) if name and commit else None


def _by_base_name(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Returns the tensors of a state by base name; the two may differ by a prefix."""
    prefix, own_prefix = common_prefix(list(names), list(state))
    return {
        prefix + name.removeprefix(own_prefix): tensor
        for name, tensor in state.items()
        if name.startswith(own_prefix)
    }
