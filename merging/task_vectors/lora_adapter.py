"""Opens a PEFT LoRA directory and sorts its tensor names."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.opening import ADAPTER_CONFIG, open_checkpoint
from flexswitch.merging.checkpoints.pairing import Selection, common_prefix
from flexswitch.merging.task_vectors.lora_config import MERGE_HINT, LoraConfig, read_lora_config

_ROOT = "base_model.model."

_FACTOR = re.compile(r"(.+)\.lora_(?:(embedding_[AB])|([AB])\.weight)")

_REPEATED = re.compile(r"\.(?:original_module|modules_to_save(?:\.[^.]+)?)\.")

_WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Adapter:
    """An open adapter with its tensors sorted by role.

    stored: its tensors by stored name; factors: target → part → stored name, a part being A, B,
    embedding_A, embedding_B or weight; whole: tensors saved whole, name → stored name; base_names: the
    base's name of each tensor that the base has; taken: the selected names.
    """

    source: str
    config: LoraConfig
    checkpoint: Checkpoint
    stored: Mapping[str, TensorInfo]
    factors: Mapping[str, Mapping[str, str]]
    whole: Mapping[str, str]
    base_names: Mapping[str, str]
    taken: frozenset[str]

    def stored_name(self, name: str) -> str:
        """Returns the checkpoint's first name of a tensor that is saved whole."""
        key = self.whole[name]
        return self.checkpoint.aliases.get(key, key)


def open_adapter(base: Checkpoint, source: str, directory: Path, selection: Selection) -> Adapter:
    """Opens an adapter. Raises: InputError if a setting or a tensor is not handled."""
    config = read_lora_config(source, directory / ADAPTER_CONFIG)
    checkpoint = _open_weights(source, directory)
    stored = dict(checkpoint.tensors)
    stored |= {name: checkpoint.tensors[first] for name, first in checkpoint.aliases.items()}
    factors, whole = _sort_names(source, stored)
    names = _base_names(base, [*factors, *whole])
    taken = {name for name in names if selection.takes(names[name])}
    taken |= {name for name in (*factors, *whole) if name not in names and not selection.excludes(name)}
    for name in sorted(taken & whole.keys() - names.keys()):
        if not config.saves(name):
            raise _unknown(source, whole[name])
    return Adapter(source, config, checkpoint, stored, factors, whole, names, frozenset(taken))


def _open_weights(source: str, directory: Path) -> Checkpoint:
    for name in _WEIGHT_FILES:
        if (directory / name).is_file():
            return open_checkpoint(str(directory / name))
    raise InputError(f"{source}: not a PEFT adapter: it has none of {', '.join(_WEIGHT_FILES)}")


def _unknown(source: str, key: str) -> InputError:
    return InputError(f"{source}: tensor '{key}' is not known as a part of a LoRA on this base; {MERGE_HINT}")


def _sort_names(source: str, stored: Iterable[str]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Returns {target: {part: stored name}}, and {name: stored name} of the tensors saved whole."""
    known = set(stored)
    factors: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for key in sorted(known):
        name = key.removeprefix(_ROOT)
        plain = _REPEATED.sub(".", name)
        if plain != name and _ROOT + plain in known:
            continue  # with bias "all", peft writes the biases of saved modules three times
        place = name.replace(".base_layer.", ".")
        match = _FACTOR.fullmatch(place)
        if name == key or plain != name or place in whole or (".lora_" in name and not match):
            raise _unknown(source, key)
        if match:
            factors.setdefault(f"{match[1]}.weight", {})[match[2] or match[3]] = key
        else:
            whole[place] = key
    for target in factors.keys() & whole.keys():  # of an embedding, since it may have been resized
        factors[target]["weight"] = whole.pop(target)
    return factors, whole


def _base_names(base: Checkpoint, names: list[str]) -> dict[str, str]:
    """Returns the base's name of each tensor that the base has."""
    base_prefix, prefix = common_prefix(list(base.tensors), names)
    own = {name: base_prefix + name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    first = {name: base.aliases.get(other, other) for name, other in own.items()}
    return {name: other for name, other in first.items() if other in base.tensors}
