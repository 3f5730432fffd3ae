"""Opens a PEFT LoRA directory and sorts its tensor names."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.alignment import InFile, names_in_base, running_names_in_base
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.opening import ADAPTER_CONFIG, open_checkpoint
from flexswitch.merging.checkpoints.pairing import Selection
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
    base's name of each tensor that the base has; taken: the selected names; running: the names in the adapted
    model of tensors that have another one in the base's files.
    """

    source: str
    config: LoraConfig
    checkpoint: Checkpoint
    stored: Mapping[str, TensorInfo]
    factors: Mapping[str, Mapping[str, str]]
    whole: Mapping[str, str]
    base_names: Mapping[str, str]
    taken: frozenset[str]
    running: Mapping[str, str]

    def stored_name(self, name: str) -> str:
        """Returns the checkpoint's first name of a tensor that is saved whole."""
        key = self.whole[name]
        return self.checkpoint.aliases.get(key, key)

    def module(self, target: str) -> str:
        """Returns the adapted module of a target, as adapter_config.json names it."""
        return self.running.get(target, target).removesuffix(".weight")


def open_adapter(base: Checkpoint, source: str, directory: Path, selection: Selection) -> Adapter:
    """Opens an adapter. Raises: InputError if a setting or a tensor is not handled."""
    config = read_lora_config(source, directory / ADAPTER_CONFIG)
    checkpoint = _open_weights(source, directory)
    stored = dict(checkpoint.tensors)
    stored |= {name: checkpoint.tensors[first] for name, first in checkpoint.aliases.items()}
    factors, whole = _sort_names(source, stored)
    direct = names_in_base(base, [*factors, *whole], source)
    names = {name: base.aliases.get(other, other) for name, other in direct.items()}
    others = [name for name in (*factors, *whole) if name not in names]
    by_table = running_names_in_base(base, others, source) if others else {}
    new = {name: _file_name(name, other) for name, other in by_table.items()}
    factors = {new.get(name, name): parts for name, parts in factors.items()}
    whole = {new.get(name, name): key for name, key in whole.items()}
    names |= {new[name]: base.aliases.get(other.file, other.file) for name, other in by_table.items()}
    taken = {name for name in names if selection.takes(names[name])}
    taken |= {name for name in (*factors, *whole) if name not in names and not selection.excludes(name)}
    for name in sorted(taken & whole.keys() - names.keys()):
        if not config.saves(name):
            raise _unknown(source, whole[name])
    running = {other: name for name, other in new.items()}
    return Adapter(source, config, checkpoint, stored, factors, whole, names, frozenset(taken), running)


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
    root = _ROOT if any(key.startswith(_ROOT) for key in known) else ""  # some tools leave it out
    factors: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for key in sorted(known):
        name = key.removeprefix(root)
        plain = _REPEATED.sub(".", name)
        if plain != name and root + plain in known:
            continue  # with bias "all", peft writes the biases of saved modules three times
        place = name.replace(".base_layer.", ".")
        match = _FACTOR.fullmatch(place)
        if not key.startswith(root) or plain != name or place in whole or (".lora_" in name and not match):
            raise _unknown(source, key)
        if match:
            factors.setdefault(f"{match[1]}.weight", {})[match[2] or match[3]] = key
        else:
            whole[place] = key
    for target in factors.keys() & whole.keys():  # of an embedding, since it may have been resized
        factors[target]["weight"] = whole.pop(target)
    return factors, whole


def _file_name(name: str, found: InFile) -> str:
    """Returns the name that an adapter's tensor would have in a file: the base's, with the same prefix."""
    if name.endswith(found.running):
        return name.removesuffix(found.running) + found.file
    return found.file.removeprefix(found.running.removesuffix(name))
