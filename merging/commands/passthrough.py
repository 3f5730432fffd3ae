"""Models made of the layers of others: the slices of a configuration of mergekit, one model each.

Source: mergekit 0.1.5, merge_methods/passthrough.py; docs/methods.md §6.23.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.config import layers_key, read_config, without_keys
from flexswitch.merging.checkpoints.dtypes import TORCH_DTYPES
from flexswitch.merging.checkpoints.floating import is_floating
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.commands.common_vocabulary import CommonVocabulary, common_vocabulary
from flexswitch.merging.commands.peer_config import conditions, parameters_of, stored_dtype
from flexswitch.merging.commands.peer_tokenizer import read_tokenizer
from flexswitch.merging.task_vectors.restore import OutputTensor, base_blocks, output_dtype
from flexswitch.merging.task_vectors.rounding import rounded

_LAYER = re.compile(
    r"(.*?(?:^|\.))(\d{1,9})(\..*)"
)  # what is before the first whole number of a name, it, the rest
# Entries of config.json that may differ between the models: where it is from, and how text is generated.
_FREE = re.compile(
    r"_name_or_path|transformers_version|_commit_hash|.*dtype|.*token_id|use_cache|pretraining_tp"
)
# Tensors before the layers, by their names; the head of GPT-NeoX is embed_out.
_AT_THE_START = re.compile(r"embed(?!_out)|project_in|\bwte\b|\bwpe\b")
_KEYS = ("merge_method", "slices", "parameters", "dtype", "out_dtype", "tokenizer_source", "tokenizer")

Scale = tuple[str, float]  # names of tensors, and the factor


@dataclass(frozen=True, eq=False)
class Slice:
    """Some layers of a model, start ≤ number < stop. scales: the last that matches a tensor counts."""

    model: Checkpoint
    start: int
    stop: int
    scales: Sequence[Scale]


@dataclass(frozen=True, eq=False)
class Stack:
    """A model made of slices. dtype: None for that of each tensor; vocabulary: None for the first model's."""

    slices: Sequence[Slice]
    dtype: torch.dtype | None
    vocabulary: CommonVocabulary | None = None

    @property
    def first(self) -> Checkpoint:
        """The model of the first slice, whose tokenizer and embeddings are taken."""
        return self.slices[0].model

    def config_changes(self) -> dict[str, Any]:
        """Returns the number of layers, and lists that have an entry for each of them."""
        changes = {} if self.vocabulary is None else self.vocabulary.config_changes()
        changes[layers_key(read_config(self.first))] = sum(each.stop - each.start for each in self.slices)
        for key, value in read_config(self.first).items():
            if _has_layers(key, value, self.first):
                parts = [read_config(each.model)[key][each.start : each.stop] for each in self.slices]
                changes[key] = [entry for part in parts for entry in part]
        if self.dtype is not None:
            changes["dtype"] = str(self.dtype).removeprefix("torch.")
        return changes

    def outputs(self) -> dict[str, OutputTensor]:
        """Returns the tensors of the model by name, read as they are needed."""
        found: dict[str, OutputTensor] = {}
        ends = self.slices[0], self.slices[-1]
        for number, each in enumerate(ends):
            for name in each.model.tensors:
                if _LAYER.fullmatch(name) is None and (number == 0) == bool(_AT_THE_START.search(name)):
                    found[name] = self._output(each, name, name)
        place = 0
        for each in self.slices:
            for layer in range(each.start, each.stop):
                for name in each.model.tensors:
                    match = _LAYER.fullmatch(name)
                    if match is not None and int(match[2]) == layer:
                        made = f"{match[1]}{place}{match[3]}"
                        found[made] = self._output(each, name, made)
                place += 1
        for alias, name in self.first.aliases.items():
            if alias not in found and name in found:
                found[alias] = found[name]
        return dict(sorted(found.items()))

    def _output(self, part: Slice, name: str, made: str) -> OutputTensor:
        info = part.model.tensors[name]
        stored = output_dtype(info, self.dtype)
        scale = next((factor for pattern, factor in reversed(part.scales) if fnmatchcase(made, pattern)), 1.0)
        return OutputTensor(TensorInfo(stored, info.shape), _reader(part.model, name, scale, stored))


def layer_count(model: Checkpoint) -> int:
    """Returns the number of a model's layers. Raises: InputError where its names and config do not tell."""
    matches = [match for name in model.tensors if (match := _LAYER.fullmatch(name))]
    config = read_config(model)
    stacks, key = {match[1] for match in matches}, layers_key(config)
    count = config.get(key)
    found = max((int(match[2]) + 1 for match in matches), default=0)
    if len(stacks) != 1 or found != count:
        raise InputError(
            f"{model.source}: expected one stack of {count} layers, as {key} of its config.json says, "
            f"found {len(stacks)} of at most {found}"
        )
    return found


def read_stack(path: Path, document: Mapping[str, Any]) -> Stack:
    """Returns the model that a configuration with merge_method: passthrough describes. Raises: InputError."""
    for key in document:
        if key not in _KEYS:
            raise InputError(f"{path}: {key} is not handled for passthrough; handled are {', '.join(_KEYS)}")
    dtype = stored_dtype(path, document)
    entries = document.get("slices")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: passthrough needs slices, each of one model and its layer_range")
    shared = list(_scales(path, document))
    opened: dict[str, Checkpoint] = {}
    slices = [_slice(path, entry, shared, opened) for entry in entries]
    choice = read_tokenizer(path, document)
    _check_alike(path, list(opened.values()), "" if choice is None else "vocab_size")
    stack = Stack(slices, None if dtype is None else getattr(torch, dtype))
    if choice is None:
        return stack
    vocabulary = common_vocabulary(path, choice, list(opened), None)
    views = {name: vocabulary.checkpoints([name], stack.dtype)[name] for name in opened}
    slices = [replace(each, model=views[each.model.source]) for each in slices]
    return replace(stack, slices=slices, vocabulary=vocabulary)


def _slice(path: Path, entry: Any, shared: Sequence[Scale], opened: dict[str, Checkpoint]) -> Slice:
    """Returns a slice; opened: models by their paths, to which its own is added. Raises: InputError."""
    sources = entry.get("sources") if isinstance(entry, dict) else None
    if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], dict):
        raise InputError(f"{path}: slices: {entry!r:.80}: expected sources with one model")
    (source,) = sources
    for odd in sorted(
        map(str, {*entry} - {"sources", "parameters"} | {*source} - {"model", "layer_range", "parameters"})
    ):
        raise InputError(f"{path}: slices: {odd} is not handled")
    named, ends = source.get("model"), source.get("layer_range")
    if not isinstance(named, str):
        raise InputError(f"{path}: slices: {source!r:.80}: expected model and layer_range")
    model = opened.setdefault(named, open_checkpoint(named)) if named not in opened else opened[named]
    count = layer_count(model)
    numbers = isinstance(ends, list) and len(ends) == 2 and all(type(end) is int for end in ends)
    if not isinstance(ends, list) or not numbers or not 0 <= ends[0] < ends[1] <= count:
        raise InputError(
            f"{path}: slices: layer_range {ends} of {named}, expected [FROM, TO] within [0, {count}]"
        )
    scales = [*shared, *_scales(path, entry), *_scales(path, source)]
    return Slice(model, ends[0], ends[1], scales)


def _scales(path: Path, given: Mapping[str, Any]) -> Iterator[Scale]:
    for key, value in parameters_of(path, given).items():
        if key != "scale":
            raise InputError(f"{path}: {key} is not handled for passthrough, only scale")
        for pattern, factor in conditions(path, key, value):
            if isinstance(factor, bool) or not isinstance(factor, int | float):
                raise InputError(f"{path}: scale: {factor!r:.80}: expected a number")
            yield pattern, float(factor)


def _check_alike(path: Path, models: Sequence[Checkpoint], free: str) -> None:
    """Raises: InputError where the models' configs differ in what layers need; free: where they may."""

    def fixed(model: Checkpoint) -> dict[str, Any]:
        entries = without_keys(read_config(model), free)
        return {key: value for key, value in entries.items() if not _is_free(key, value, model)}

    first = fixed(models[0])
    for model in models[1:]:
        other = fixed(model)
        for key in sorted(first.keys() | other.keys()):
            if first.get(key) != other.get(key):
                raise InputError(
                    f"{path}: {models[0].source} and {model.source} have the {key} {first.get(key)!r:.60} "
                    f"and {other.get(key)!r:.60} in their config.json; their layers do not fit together"
                )


def _is_free(key: str, value: Any, model: Checkpoint) -> bool:
    return (
        key == layers_key(read_config(model))
        or _has_layers(key, value, model)
        or _FREE.fullmatch(key) is not None
    )


def _has_layers(key: str, value: Any, model: Checkpoint) -> bool:
    """Returns whether an entry of config.json is a list with an entry for each layer."""
    named_otherwise = key == "architectures" or _FREE.fullmatch(key) is not None
    return isinstance(value, list) and len(value) == layer_count(model) and not named_otherwise


def _reader(model: Checkpoint, name: str, scale: float, stored: str) -> Callable[[], Iterator[Tensor]]:
    dtype = TORCH_DTYPES[stored]

    def read() -> Iterator[Tensor]:
        for block in base_blocks(model, name):
            scaled = block.to(torch.float32) * scale if scale != 1 and is_floating(stored) else block
            yield rounded(scaled, block, dtype, name)

    return read
