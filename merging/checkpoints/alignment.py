"""Gives the tensors of a fine-tuned checkpoint the names and the form that they have in its base.

Names that agree up to a prefix are left to pairing. Where some do not, transformers' tables say which tensors
of both files become the same one of the running model.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial as bind
from typing import NamedTuple

from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.config import entries_named, read_config
from flexswitch.merging.checkpoints.floating import is_floating
from flexswitch.merging.checkpoints.pairing import common_prefix, partner, unambiguous_prefix
from flexswitch.merging.checkpoints.renamed import Conversion, RenamedCheckpoint, renamed
from flexswitch.merging.checkpoints.running_names import (
    Made,
    RunningModel,
    State,
    converted,
    outline,
    outlines,
    running_model,
)
from flexswitch.merging.checkpoints.wrappers import without_parallel


class Aligned(NamedTuple):
    """A fine-tuned checkpoint by its base's names; is_known: whether transformers' tables have been used."""

    checkpoint: Checkpoint
    is_known: bool


def aligned(base: Checkpoint, finetuned: Checkpoint) -> Aligned:
    """Returns a fine-tuned checkpoint under its base's names, and under both of a tie that the base has not.

    Raises: InputError if names are ambiguous, or if it is a part of the base under names of its own.
    """
    found = _renamed(base, finetuned)
    _refuse_part(base, found.checkpoint)
    return found._replace(checkpoint=_tied(base, found.checkpoint))


def _refuse_part(base: Checkpoint, finetuned: Checkpoint) -> None:
    """Raises: InputError for a model that is a part of the base and has other names than it has there.

    A restored model would have the base's names, and the config of the part, which go with other names.
    """
    part, whole = (read_config(each) for each in (finetuned, base))
    kind, around = part.get("model_type"), whole.get("model_type")
    if kind is None or kind == around or kind not in entries_named(whole, "model_type"):
        return
    prefix = unambiguous_prefix(list(base.tensors), list(all_tensors(finetuned)), finetuned.source)[0]
    if prefix:
        raise InputError(
            f"{finetuned.source}: is a {kind}, a part of the base {base.source}, where its names begin with "
            f"'{prefix}'; give that part as the base, as a model of its own"
        )


def _tied(base: Checkpoint, finetuned: Checkpoint) -> Checkpoint:
    """Returns a fine-tuned checkpoint with the tensors that it lacks since its model ties them to others."""
    held = all_tensors(finetuned)
    prefixes = unambiguous_prefix(list(base.tensors), list(held), finetuned.source)
    lacking = [
        prefixes[1] + name.removeprefix(prefixes[0])
        for name, info in base.tensors.items()
        if is_floating(info.dtype) and partner(name, base, finetuned, *prefixes) is None
    ]
    config = read_config(finetuned) or read_config(base)
    model = running_model(config) if lacking and config else None
    tied = {} if model is None else model.tied_names(lacking, held)
    if not tied:
        return finetuned
    found = RenamedCheckpoint(finetuned, {name: name for name in held})
    found.aliases |= {name: finetuned.aliases.get(other, other) for name, other in tied.items()}
    name, other = next(iter(tied.items()))
    note = f"the fine-tuned model ties '{name}' to '{other}'; the base's tensors of both names get its change"
    found.notes = [*found.notes, note]
    return found


def _renamed(base: Checkpoint, finetuned: Checkpoint) -> Aligned:
    """Returns a fine-tuned checkpoint under its base's names. Raises: InputError if these are ambiguous."""
    config, own_config = read_config(base), read_config(finetuned)
    direct = names_in_base(base, all_tensors(finetuned), finetuned.source)
    if config and not own_config:  # of a state dict alone, only the base's names fit the base's config
        finetuned = renamed(finetuned, direct)
        direct = {name: name for name in all_tensors(finetuned) if name in all_tensors(base)}
    found = {base.aliases.get(name, name) for name in direct.values()}
    is_missing = any(is_floating(info.dtype) and name not in found for name, info in base.tensors.items())
    if not is_missing or len(direct) == len(all_tensors(finetuned)):
        return Aligned(finetuned, False)
    one, other = running_model(config or own_config), running_model(own_config or config)
    if one is None or other is None:
        return Aligned(finetuned, False)
    return _converted(base, finetuned, one, other)


class InFile(NamedTuple):
    """A tensor's name in the running model, and in a file."""

    running: str
    file: str


def running_names_in_base(base: Checkpoint, names: Iterable[str], source: str) -> dict[str, InFile]:
    """Returns name → its names in the base, for those that the base's running model has as they are stored.

    Raises: InputError if a tensor of the running model is made of several of the base's.
    """
    model = running_model(read_config(base))
    if model is None:
        return {}
    made = converted(model.loaded, outlines(all_tensors(base)))
    found = {}
    for name, running in model.running_names(names).items():
        if running in made and not made[running].is_renamed:
            parts = ", ".join(made[running].sources[:3])
            raise InputError(
                f"{source}: changes '{name}', which transformers makes of {parts} of {base.source}; merge "
                "the adapter into its base with peft and give the merged model"
            )
        if running in made:
            found[name] = InFile(running, made[running].sources[0])
    return found


def names_in_base(base: Checkpoint, names: Iterable[str], source: str) -> dict[str, str]:
    """Returns name → the base's name, for those that agree up to one prefix and the parts of a wrapper.

    Raises: InputError naming both if two prefixes fit equally well.
    """
    plain = {name: name for name in names}
    own = all_tensors(base)
    if not plain.keys() <= own.keys():
        parallel = {without_parallel(name): name for name in own}
        plain |= {name: parallel.get(without_parallel(name), name) for name in plain.keys() - own.keys()}
    base_prefix, prefix = unambiguous_prefix(list(own), list(plain.values()), source)
    found = {
        name: base_prefix + new.removeprefix(prefix) for name, new in plain.items() if new.startswith(prefix)
    }
    return {name: new for name, new in found.items() if new in own}


def all_tensors(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """Returns the headers by every name, those of tied tensors included."""
    tied = {name: checkpoint.tensors[first] for name, first in checkpoint.aliases.items()}
    return {**checkpoint.tensors, **tied}


def _converted(base: Checkpoint, finetuned: Checkpoint, one: RunningModel, other: RunningModel) -> Aligned:
    """Returns the fine-tuned checkpoint with each tensor of the base's running model in the base's form."""
    drawn = outlines(all_tensors(finetuned))
    base_made, made = converted(one.loaded, outlines(all_tensors(base))), converted(other.loaded, drawn)
    base_prefix, prefix = common_prefix(list(base_made), list(made))
    names: dict[str, str] = {}
    conversions: dict[str, Conversion] = {}
    for sources, running in _groups(base_made).items():
        parts = {name: prefix + name.removeprefix(base_prefix) for name in running}
        if not made.keys() >= set(parts.values()):
            continue
        new = {source: prefix + source.removeprefix(base_prefix) for source in sources}
        own = tuple(dict.fromkeys(source for part in parts.values() for source in made[part].sources))
        is_renamed = base_made[running[0]].is_renamed
        if is_renamed and all(made[part].is_renamed for part in parts.values()):
            names[own[0]] = new[sources[0]]
        elif set(own) in (set(sources), set(new.values())):
            names |= {name: new.get(name, name) for name in own}
        elif finetuned.tensors.keys() >= set(own):
            make = bind(_in_the_base_s_form, one, other, parts, sources[0] if is_renamed else None)
            found = converted(make, {source: drawn[source] for source in own})
            conversions |= {
                name: Conversion(outline(found[source]), own, make, source)
                for source, name in new.items()
                if source in found
            }
    used = {source for conversion in conversions.values() for source in conversion.sources}
    kept = {name: names.get(name, name) for name in drawn if name not in used}
    counts = Counter([*kept.values(), *conversions])
    unique = {new if counts[new] == 1 else name: name for name, new in kept.items()}
    return Aligned(RenamedCheckpoint(finetuned, unique, conversions), bool(base_made and made))


def _groups(made: Mapping[str, Made]) -> dict[tuple[str, ...], list[str]]:
    """Returns the running tensors that are made of the same tensors of a file."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, each in made.items():
        groups.setdefault(each.sources, []).append(name)
    return groups


def _in_the_base_s_form(
    one: RunningModel, other: RunningModel, parts: Mapping[str, str], renamed_to: str | None, state: State
) -> Mapping[str, Tensor]:
    """Returns fine-tuned tensors as the base's file has them: loaded by one model, saved by the other.

    parts: the base's running name → the fine-tuned one. renamed_to: the name in the base's file of a tensor
    that is loaded as it is.
    """
    loaded = other.loaded(state)
    running = {name: loaded[part].tensor for name, part in parts.items()}
    return one.saved(running) if renamed_to is None else {renamed_to: next(iter(running.values()))}
