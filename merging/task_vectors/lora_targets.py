"""The targets of a LoRA on a base; LoRAs that cannot be expanded exactly are refused."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.config import entries_named, read_config
from flexswitch.merging.checkpoints.floating import is_floating
from flexswitch.merging.checkpoints.opening import ADAPTER_CONFIG
from flexswitch.merging.checkpoints.running_names import running_model
from flexswitch.merging.checkpoints.tied_names import unties
from flexswitch.merging.task_vectors.lora_adapter import Adapter
from flexswitch.merging.task_vectors.lora_config import MERGE_HINT

_LANGUAGE_MODEL = re.compile(r"'\w+(?:ForCausalLM|ForConditionalGeneration|ForMaskedLM|LMHeadModel)'")

_UNTIE = "untie the base before it is merged with peft"


class Target(NamedTuple):
    """The stored names of A, B and, where peft saved it beside them, of the target's own weight."""

    a: str
    b: str
    weight: str | None
    rank: int
    scaling: float
    transposed: bool  # the weight is stored (in, out), so that the delta is (B A)ᵀ


def find_targets(base: Checkpoint, adapter: Adapter) -> dict[str, Target]:
    """Returns the selected targets by name. Raises: InputError if one does not fit the base."""
    source, config, stored, names = adapter.source, adapter.config, adapter.stored, adapter.base_names
    targets, squares, contradicted = {}, [], False
    for name in sorted(adapter.factors.keys() & adapter.taken):
        parts = adapter.factors[name]
        kind = "embedding_" if "embedding_A" in parts or "embedding_B" in parts else ""
        held = sorted(f"lora_{part}" for part in parts.keys() - {"weight"})
        if held != [f"lora_{kind}A", f"lora_{kind}B"]:
            found = f"{' and '.join(held)}, expected lora_{kind}A and lora_{kind}B"
            raise InputError(f"{source}: its target '{name}' has {found}; save the adapter again")
        info = base.tensors.get(names.get(name, ""), TensorInfo("none", ()))
        if not is_floating(info.dtype) or not 2 <= len(info.shape) <= (2 if kind else 5):
            if name not in names and (first := _tied_to(base, name)) is not None:
                raise InputError(
                    f"{source}: changes '{name}', which the base {base.source} does not hold, as it ties it "
                    f"to '{first}'; leave it out with --exclude '{name}', or {_UNTIE}"
                )
            found = f"is {info.dtype} {list(info.shape)}" if name in names else "is missing"
            raise InputError(f"{source}: its target '{name}' {found} in {base.source}; give its own base")
        shape, a, b, weight = info.shape, parts[f"{kind}A"], parts[f"{kind}B"], parts.get("weight")
        rank, scaling = config.rank_and_scaling(adapter.module(name))
        forms = {False: ((rank, *shape[1:]), (shape[0], rank, *[1] * (len(shape) - 2)), shape)}
        if len(shape) == 2:
            forms[True] = ((rank, shape[0]), (shape[1], rank), shape)
        fitting = [form for form in forms if forms[form][:2] == (stored[a].shape, stored[b].shape)]
        flag = bool(kind) or (config.fan_in_fan_out and True in forms)
        transposed = fitting[0] if len(fitting) == 1 and not kind else flag
        contradicted |= transposed != flag  # where layers differ, peft's flag is that of the last one
        squares += [name] if len(fitting) == 2 and not kind else []
        for key, expected in zip((a, b, weight), forms[transposed], strict=True):
            if key and stored[key].shape != expected:
                found = f"has the shape {list(stored[key].shape)}, expected {list(expected)}"
                raise InputError(f"{source}: tensor '{key}' {found}; give its own base")
        targets[name] = Target(a, b, weight, rank, scaling, transposed)
    if contradicted and squares:
        found = f"the 'fan_in_fan_out' of {ADAPTER_CONFIG} does not hold for all targets"
        raise InputError(f"{source}: {found}, and the square '{squares[0]}' shows none; {MERGE_HINT}")
    return targets


def refuse_half_tied(base: Checkpoint, adapter: Adapter, infos: Mapping[str, TensorInfo]) -> None:
    """Raises: InputError if the adapter changes a tensor but not the ones that the base ties to it."""
    names, settings = adapter.base_names, read_config(base)
    head = adapter.config.uses_language_head and _LANGUAGE_MODEL.search(str(settings.get("architectures")))
    vocabularies = [*entries_named(settings, "vocab_size")] if head and not unties(settings) else []
    shapes = [info.shape for info in base.tensors.values()]
    shapes += [info.shape for name, info in infos.items() if name not in names]
    for name in sorted(adapter.taken & names.keys()):
        base_name, shape = names[name], infos[name].shape
        tied = [alias for alias, first in base.aliases.items() if first == base_name]
        given = [other for other in adapter.whole if names.get(other) == base_name]
        complete = name in adapter.whole and len(given) > len(tied)
        if not tied and len(shape) == 2 and shape[0] in vocabularies and shapes.count(shape) == 1:
            tied, complete = ["the model's head"], False
        if tied and not complete:
            raise InputError(
                f"{adapter.source}: changes '{name}' alone, which the base {base.source} ties to "
                f"{', '.join(tied)}; leave it out with --exclude '{base_name}', or {_UNTIE}"
            )


def _tied_to(base: Checkpoint, name: str) -> str | None:
    """Returns the base's tensor that its model uses under a further name, None where that is not known."""
    model = running_model(read_config(base))
    return None if model is None else model.tied_names([name], base.tensors).get(name)
