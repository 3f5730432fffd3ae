"""The task vector of a PEFT LoRA directory: scaling · B A of each target, expanded as it is read.

What can't be expanded exactly is refused by name. Source: peft's tuners/lora/layer.py (get_delta_weight),
tuners/lora/model.py (rank and scaling of a module), utils/save_and_load.py (names of tensors).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.checkpoints.checkpoint import (
    ADAPTER_CONFIG,
    Checkpoint,
    TensorInfo,
    locate,
    open_checkpoint,
    read_config,
)
from flexswitch.merging.checkpoints.dtypes import is_floating
from flexswitch.merging.checkpoints.pairing import EVERYTHING, Selection, common_prefix
from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.lora_config import MERGE_HINT, LoraConfig, read_lora_config
from flexswitch.merging.task_vectors.task_vector import BLOCK_ENTRIES

_Rows = NDArray[np.float64]

_WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_ROOT = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_(?:(embedding_[AB])|([AB])\.weight)")
_REPEATED = re.compile(r"\.(?:original_module|modules_to_save(?:\.[^.]+)?)\.")
_LANGUAGE_MODEL = re.compile(r"'\w+(?:ForCausalLM|ForConditionalGeneration|ForMaskedLM|LMHeadModel)'")
_TILE_ENTRIES = 1 << 15  # summed at once, so that the sums stay in the processor's cache


class _Target(NamedTuple):
    """The stored names of A, B and, where peft saved it beside them, of the target's own weight."""

    a: str
    b: str
    weight: str | None
    rank: int
    scaling: float
    transposed: bool  # the weight is stored (in, out), so that the delta is (B A)ᵀ


@dataclass(frozen=True)
class _Adapter:
    """An open adapter whose names are sorted out.

    stored: its tensors by stored name; factors: target → part → stored name, a part being A, B,
    embedding_A, embedding_B or weight; whole: tensors saved whole, name → stored name; base_names: the
    base's name of those that the base has; taken: the names that are selected.
    """

    source: str
    config: LoraConfig
    checkpoint: Checkpoint
    stored: Mapping[str, TensorInfo]
    factors: Mapping[str, Mapping[str, str]]
    whole: Mapping[str, str]
    base_names: Mapping[str, str]
    taken: frozenset[str]


@dataclass
class _Excerpt:
    """Some tensors of a checkpoint; `stored` maps those that got another name to the checkpoint's."""

    source: str
    directory: Path | None
    whole: Checkpoint
    stored: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    aliases: Mapping[str, str]
    hub_id: str | None = None

    @property
    def files(self) -> Sequence[Path]:
        """The files of the checkpoint."""
        return self.whole.files

    def read_ahead(self, name: str) -> None:
        """Asks the system to have a tensor's bytes in memory soon."""
        self.whole.read_ahead(self.stored.get(name, name))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns entries [start, stop) of a tensor, flat, in its own dtype."""
        return self.whole.read(self.stored.get(name, name), start, stop)


class LoraVector(CheckpointPair):
    """The task vector of a PEFT LoRA directory on an open base.

    units holds the targets and those tensors of the base that were saved whole (biases,
    `modules_to_save`): nothing else changes, and a unit that is left out decodes to zeros.
    """

    def __init__(self, base: Checkpoint, source: str, selection: Selection = EVERYTHING) -> None:
        directory = locate(source)[0]
        adapter = _open_adapter(base, source, directory, selection)
        targets = _find_targets(base, adapter)
        names = adapter.base_names
        infos = {name: base.tensors[names[name]] for name in adapter.factors if name in names}
        infos |= {name: adapter.stored[key] for name, key in adapter.whole.items()}
        _refuse_half_tied(base, adapter, infos)
        touched = {
            name: base.tensors[name] for name in sorted({names[name] for name in infos if name in names})
        }
        home = directory if (directory / "config.json").is_file() else base.directory
        super().__init__(
            _Excerpt(base.source, base.directory, base, {}, touched, base.aliases),
            _Excerpt(source, home, adapter.checkpoint, adapter.whole, dict(sorted(infos.items())), {}),
            selection,
        )
        self._adapter = adapter.checkpoint
        self.base = base
        self._targets = {names[name]: target for name, target in targets.items()}
        self.parameters = sum(
            info.entries
            for name, info in base.tensors.items()
            if info.shape and is_floating(info.dtype) and selection.takes(name)
        )

    def blocks(self, unit: str) -> Iterator[FloatArray]:
        """Yields a unit's delta. Raises: InputError where it is not finite."""
        return self._expand(unit, self._targets[unit]) if unit in self._targets else super().blocks(unit)

    def read_ahead(self, unit: str) -> None:
        """Asks the system to have a unit's bytes in memory soon; a target's factors are small."""
        if unit not in self._targets:
            super().read_ahead(unit)

    def is_cheap(self, unit: str) -> bool:
        """Returns False for a target, whose factors are multiplied each time."""
        return unit not in self._targets

    def exact(self, unit: str) -> tuple[NDArray[np.int64], FloatArray]:
        """Returns nothing for a target, and for a tensor saved whole the weights that rounding would miss."""
        if unit in self._targets:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return super().exact(unit)

    def _expand(self, unit: str, target: _Target) -> Iterator[FloatArray]:
        """Yields float32(scaling · B A), summed over the rank in float64 and rounded once."""
        a = self._adapter.read(target.a).to(torch.float64).reshape(target.rank, -1)
        b = self._adapter.read(target.b).to(torch.float64).reshape(-1, target.rank).T.contiguous()
        left, right = (a.numpy(), b.numpy()) if target.transposed else (b.numpy(), a.numpy())
        entries, columns = self.base.tensors[unit].entries, right.shape[1]
        for start in range(0, entries, BLOCK_ENTRIES):
            stop = min(entries, start + BLOCK_ENTRIES)
            first, last = start // columns, -(-stop // columns)  # the rows that the block touches
            with np.errstate(over="ignore", invalid="ignore"):  # told below
                rows = _product(left, right, first, last).reshape(-1)
                total = rows[start - first * columns : stop - first * columns] * target.scaling
                if target.weight is not None:
                    total += self._saved_minus_base(target.weight, unit, start, stop)
                delta = total.astype(np.float32)
            if not np.isfinite(delta).all():
                raise InputError(
                    f"{self.source}: the delta of tensor '{unit}' is not finite near entry {start:,}; "
                    "the adapter holds NaN, infinite or far too large weights"
                )
            yield delta

    def _saved_minus_base(self, saved: str, unit: str, start: int, stop: int) -> _Rows:
        one, other = self._adapter.read(saved, start, stop), self.base.read(unit, start, stop)
        difference: _Rows = one.to(torch.float32).to(torch.float64).sub(other.to(torch.float32)).numpy()
        return difference


def _product(left: _Rows, right: _Rows, first: int, last: int) -> _Rows:
    """Returns rows [first, last) of leftᵀ · right; left: (rank, rows), right: (rank, columns).

    Summed term by term, so that an entry's bytes depend on neither threads nor the borders of blocks.
    """
    total = np.zeros((last - first, right.shape[1]))
    step = max(1, _TILE_ENTRIES // right.shape[1])
    for start in range(0, last - first, step):
        tile = total[start : start + step]
        columns = left[:, first + start :][:, : len(tile), None]  # (rank, rows of the tile, 1)
        for column, row in zip(columns, right, strict=True):
            tile += column * row
    return total


def _open_adapter(base: Checkpoint, source: str, directory: Path, selection: Selection) -> _Adapter:
    """Opens an adapter. Raises: InputError where a setting or a tensor is not handled."""
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
    return _Adapter(source, config, checkpoint, stored, factors, whole, names, frozenset(taken))


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
    """Returns the base's name for each tensor that the base has."""
    base_prefix, prefix = common_prefix(list(base.tensors), names)
    own = {name: base_prefix + name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    first = {name: base.aliases.get(other, other) for name, other in own.items()}
    return {name: other for name, other in first.items() if other in base.tensors}


def _find_targets(base: Checkpoint, adapter: _Adapter) -> dict[str, _Target]:
    """Returns the taken targets by name. Raises: InputError where one does not fit the base."""
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
            found = f"is {info.dtype} {list(info.shape)}" if name in names else "is missing"
            raise InputError(f"{source}: its target '{name}' {found} in {base.source}; give its own base")
        shape, a, b, weight = info.shape, parts[f"{kind}A"], parts[f"{kind}B"], parts.get("weight")
        rank, scaling = config.rank_and_scaling(name.removesuffix(".weight"))
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
        targets[name] = _Target(a, b, weight, rank, scaling, transposed)
    if contradicted and squares:
        found = f"the 'fan_in_fan_out' of {ADAPTER_CONFIG} does not hold for all targets"
        raise InputError(f"{source}: {found}, and the square '{squares[0]}' shows none; {MERGE_HINT}")
    return targets


def _refuse_half_tied(base: Checkpoint, adapter: _Adapter, infos: Mapping[str, TensorInfo]) -> None:
    """Raises: InputError where the adapter changes a tensor and not those that the base ties to it."""
    names, settings = adapter.base_names, read_config(base)
    head = adapter.config.uses_language_head and _LANGUAGE_MODEL.search(str(settings.get("architectures")))
    vocabulary = settings.get("vocab_size") if head and settings.get("tie_word_embeddings", True) else None
    shapes = [info.shape for info in base.tensors.values()]
    shapes += [info.shape for name, info in infos.items() if name not in names]
    for name in sorted(adapter.taken & names.keys()):
        unit, shape = names[name], infos[name].shape
        tied = [alias for alias, first in base.aliases.items() if first == unit]
        given = [other for other in adapter.whole if names.get(other) == unit]
        complete = name in adapter.whole and len(given) > len(tied)
        if not tied and len(shape) == 2 and shape[0] == vocabulary and shapes.count(shape) == 1:
            tied, complete = ["the model's head"], False
        if tied and not complete:
            raise InputError(
                f"{adapter.source}: changes '{name}' alone, which the base {base.source} ties to "
                f"{', '.join(tied)}; leave it out with --exclude '{unit}', or untie the base before it is "
                "merged with peft"
            )
