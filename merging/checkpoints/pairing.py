"""Matches the tensors of a fine-tuned checkpoint to those of its base, from headers alone.

Source: docs/methods.md §1: tensors, buffers, extras, resized tensors, prefixes.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Literal

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.floating import is_floating

Resize = Literal["refuse", "extra", "rows"]

# Floating buffers by the last part of their names: statistics, which must stay in their range (a variance is
# never negative), and what training sets by a rule of its own. A delta with loss would break them.
_BUFFERS = frozenset({
    "running_mean", "running_var", "cluster_size", "embed_avg", "embed_sum", "e_score_correction_bias",
    "expert_bias", "final_logits_bias", "inv_freq", "latent_mean", "latent_std", "masked_bias",
})  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """The user's choice: patterns over base names, and how a resized tensor is handled.

    key: of the state dict in a fine-tuned file that holds several.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    on_resize: Resize = "refuse"
    key: str | None = None

    def takes(self, name: str) -> bool:
        """Returns whether a name matches the included patterns, if there are any, and no excluded one."""
        included = not self.include or any(fnmatchcase(name, pattern) for pattern in self.include)
        return included and not self.excludes(name)

    def excludes(self, name: str) -> bool:
        """Returns whether a name is excluded."""
        return any(fnmatchcase(name, pattern) for pattern in self.exclude)


EVERYTHING = Selection()


@dataclass(frozen=True)
class Headers:
    """What pairing needs to know of a checkpoint.

    source names it in messages; tensors holds the headers in name order; aliases maps the further names of
    a tied tensor to the one in `tensors`. names_are_known: whether each tensor has its name in the base, if
    the base has it.
    """

    source: str
    tensors: Mapping[str, TensorInfo]
    aliases: Mapping[str, str]
    names_are_known: bool = False


@dataclass(frozen=True)
class Pairing:
    """Which tensor of the fine-tuned checkpoint belongs to which of the base.

    tensors and buffers: base name → fine-tuned name, in name order; buffers are stored when they
    differ. extras: fine-tuned names of the task's own tensors. notes: messages for the user.
    """

    tensors: dict[str, str]
    buffers: dict[str, str]
    extras: list[str]
    base_prefix: str
    prefix: str
    notes: list[str]


def pair(base: Headers, finetuned: Headers, selection: Selection) -> Pairing:
    """Returns the pairing of two checkpoints.

    Raises: InputError if they share few names or none, the fine-tuned one lacks a tensor of the base or holds
    integers for its weights, or a shape differs and `on_resize` is "refuse".
    """
    base_prefix, prefix = unambiguous_prefix(
        list(base.tensors), [*finetuned.tensors, *finetuned.aliases], finetuned.source
    )
    notes = _prefix_notes(base_prefix, prefix)
    partners = {name: partner(name, base, finetuned, base_prefix, prefix) for name in base.tensors}
    used = {other for other in partners.values() if other is not None}
    tensors: dict[str, str] = {}
    buffers: dict[str, str] = {}
    resized: list[str] = []
    missing = [
        name
        for name, other in partners.items()
        if other is None and selection.takes(name) and is_floating(base.tensors[name].dtype)
    ]
    _check_names(base, finetuned, used, missing)
    for name, info in base.tensors.items():
        other = partners[name]
        if other is None or not selection.takes(name):
            continue  # an integer buffer that the checkpoint does not store is the base's
        target = finetuned.tensors[other]
        if _is_buffer(name, info):
            buffers[name] = other
        elif not is_floating(target.dtype):
            raise InputError(
                f"{finetuned.source}: tensor '{name}' has the dtype {target.dtype}, expected a floating one "
                f"as the base's {info.dtype}; give the checkpoint from before it was quantised"
            )
        elif target.shape == info.shape or _takes_rows(name, info, target, selection.on_resize, finetuned):
            tensors[name] = other
        else:
            resized.append(other)
    added = [name for name in finetuned.tensors if name not in used and not selection.excludes(name)]
    if not tensors and not buffers and not resized:
        raise InputError(f"{finetuned.source}: no tensor of the base {base.source} is selected")
    return Pairing(tensors, buffers, sorted(added + resized), base_prefix, prefix, notes)


def _is_buffer(name: str, info: TensorInfo) -> bool:
    """Returns whether a tensor is stored exactly: integers, single numbers and statistics."""
    return not is_floating(info.dtype) or not info.shape or name.rpartition(".")[2] in _BUFFERS


def _check_names(base: Headers, finetuned: Headers, used: set[str], missing: list[str]) -> None:
    """Raises: InputError if few fine-tuned names are used or none, or if a base name is missing."""
    if not used:
        raise InputError(
            f"{finetuned.source}: shares no tensor name with the base {base.source}; "
            "give the base it was fine-tuned from"
        )
    similar = None if finetuned.names_are_known else _similar(base, finetuned, used, missing)
    if similar is None and 2 * len(used) < min(len(base.tensors), len(finetuned.tensors)):
        raise InputError(
            f"{finetuned.source}: shares only {len(used)} of its {len(finetuned.tensors)} tensors' names "
            f"with the base {base.source}, which has {len(base.tensors)}; give the base that it was made from"
        )
    if not missing:
        return
    found = (
        f"{finetuned.source}: lacks {len(missing)} tensors of the base {base.source}, such as '{missing[0]}'"
    )
    if similar is not None:
        raise InputError(
            f"{found}, and has '{similar}', which may be the same by another name; {_other_names_hint()}"
        )
    patterns = "' --exclude '".join(_patterns(missing, base.tensors.keys() - missing))
    raise InputError(f"{found}; leave them out with --exclude '{patterns}'")


def _similar(base: Headers, finetuned: Headers, used: set[str], missing: list[str]) -> str | None:
    """Returns a fine-tuned tensor that may be a missing one: its shape and the numbers in its name agree."""

    def traits(name: str, info: TensorInfo) -> tuple[object, ...]:
        return info.shape, re.findall(r"\d+", name)

    wanted = [traits(name, base.tensors[name]) for name in missing]
    unused = [name for name in finetuned.tensors if name not in used]
    return next((name for name in unused if traits(name, finetuned.tensors[name]) in wanted), None)


def _other_names_hint() -> str:
    """Returns how to give both checkpoints the same names."""
    if find_spec("transformers") is None:
        return "install flexswitch[eval], which knows the names of other releases, and run the command again"
    return "load one of them with transformers and save it with the release that saved the other"


def common_prefix(base: Sequence[str], finetuned: Sequence[str]) -> tuple[str, str]:
    """Returns the prefixes (of the base's names, of the fine-tuned names); at least one of them is empty.

    The prefix under which most names agree is chosen, or none if no prefix makes more names agree.
    """
    return _best_prefixes(base, finetuned)[-1]


def unambiguous_prefix(base: Sequence[str], finetuned: Sequence[str], source: str) -> tuple[str, str]:
    """Returns `common_prefix`. Raises: InputError naming both if as many names agree under another one."""
    *others, best = _best_prefixes(base, finetuned)
    if others and best != ("", ""):
        one, other = (max(choice, key=len) for choice in (best, others[-1]))
        raise InputError(
            f"{source}: its names fit the base's both under '{one}' and under '{other}'; give as the base "
            "the part that it was made from, as a model of its own"
        )
    return best


def _best_prefixes(base: Sequence[str], finetuned: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the choices of prefixes under which most names agree, the preferred one last."""
    base_names, finetuned_names = set(base), set(finetuned)
    votes = Counter({("", ""): len(base_names & finetuned_names)})
    votes.update(("", prefix) for prefix in _prefixes(finetuned, base_names))
    votes.update((prefix, "") for prefix in _prefixes(base, finetuned_names))
    most = max(votes.values())
    return sorted(
        (choice for choice in votes if votes[choice] == most), key=lambda choice: (choice == ("", ""), choice)
    )


def _prefixes(longer: Sequence[str], shorter: set[str]) -> list[str]:
    """Returns every prefix whose removal turns a longer name into one of the shorter names."""
    found = []
    for name in longer:
        steps = name.split(".")
        for cut in range(1, len(steps)):
            if ".".join(steps[cut:]) in shorter:
                found.append(".".join(steps[:cut]) + ".")
    return found


def partner(
    name: str, base: Headers | Checkpoint, finetuned: Headers | Checkpoint, base_prefix: str, prefix: str
) -> str | None:
    """Returns the fine-tuned name of a base tensor or of one tied to it."""
    tied = [alias for alias, first in base.aliases.items() if first == name]
    for candidate in (name, *tied):
        if not candidate.startswith(base_prefix):
            continue
        other = prefix + candidate.removeprefix(base_prefix)
        other = finetuned.aliases.get(other, other)
        if other in finetuned.tensors:
            return other
    return None


def _takes_rows(name: str, base: TensorInfo, finetuned: TensorInfo, choice: Resize, source: Headers) -> bool:
    """Returns whether the overlapping rows of a resized tensor are used, rather than storing it whole.

    Raises: InputError naming both shapes and the option, if the user has not chosen or the rows do not fit.
    """
    rows_fit = len(base.shape) == len(finetuned.shape) and base.shape[1:] == finetuned.shape[1:]
    if choice == "refuse" or (choice == "rows" and not rows_fit):
        way = "store it whole with --on-resize extra"
        if rows_fit:
            way += ", or take the overlapping rows with --on-resize rows"
        raise InputError(
            f"{source.source}: tensor '{name}' has the shape {list(finetuned.shape)}, "
            f"expected the base's {list(base.shape)}; {way}"
        )
    return choice == "rows"


def _prefix_notes(base_prefix: str, prefix: str) -> list[str]:
    if prefix:
        return [f"the fine-tuned names carry the prefix '{prefix}'; the base's names are used"]
    if base_prefix:
        return [f"the base's names carry the prefix '{base_prefix}'; they are used"]
    return []


def _patterns(missing: Sequence[str], present: Iterable[str]) -> list[str]:
    """Returns patterns, of modules or single names, that match the missing names and no others."""
    others = {module for name in present for module in _modules(name)}
    counts = Counter(module for name in missing for module in _modules(name))
    patterns = []
    for name in missing:
        whole = [module for module in _modules(name) if counts[module] > 1 and module not in others]
        patterns.append(f"{whole[0]}*" if whole else name)
    return list(dict.fromkeys(patterns))


def _modules(name: str) -> list[str]:
    """Returns the modules that contain a name, each with its trailing dot, outermost first."""
    return [name[: place + 1] for place, letter in enumerate(name) if letter == "."]
