"""The task vector of a PEFT LoRA directory: scaling · B A of each target, expanded as it is read.

What can't be expanded exactly is refused by name. Source: peft's tuners/lora/layer.py (get_delta_weight),
tuners/lora/model.py (rank and scaling of a module), utils/save_and_load.py (names of tensors).
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.checkpoint import (
    ADAPTER_CONFIG,
    Checkpoint,
    SafetensorsCheckpoint,
    TensorInfo,
    TorchCheckpoint,
    locate,
    read_config,
    read_json_object,
)
from flexswitch.merging.checkpoint_pair import CheckpointPair
from flexswitch.merging.dtypes import is_floating
from flexswitch.merging.pairing import EVERYTHING, Selection, common_prefix
from flexswitch.merging.task_vector import BLOCK_ENTRIES

type Names = Mapping[str, str]
type Rows = NDArray[np.float64]
type Rank = Annotated[int, Field(gt=0, lt=1 << 31)]

_TILE_ENTRIES = 1 << 15  # summed at once, so that the sums stay in the processor's cache
_ROOT = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_(?:(embedding_[AB])|([AB])\.weight)")
_REPEATED = re.compile(r"\.(?:original_module|modules_to_save\.[^.]+)\.")
_MERGE = "merge the adapter into its base with peft and give the merged model"
# Settings that don't change what the stored weights mean; any further one has to be empty.
_HARMLESS = set(
    "auto_mapping base_model_name_or_path ensure_weight_tying eva_config exclude_modules inference_mode "
    "layers_pattern layers_to_transform lora_dropout megatron_core peft_version qalora_group_size revision "
    "runtime_config target_modules".split()
)
# What peft's classes for these tasks save beside the LoRA; old releases leave it out of modules_to_save.
_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


class _Config(BaseModel):
    """The settings that say what the weights mean. pissa, olora, corda, loftq and lora_ga change the base."""

    model_config = ConfigDict(extra="allow", strict=True)

    peft_type: Literal["LORA"]
    r: Rank = 8
    lora_alpha: FiniteFloat = 8.0
    use_rslora: bool = False
    rank_pattern: dict[str, Rank] = {}
    alpha_pattern: dict[str, FiniteFloat] = {}
    fan_in_fan_out: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    modules_to_save: list[str] = []
    task_type: str = ""
    init_lora_weights: Literal[True, False, "eva", "gaussian", "mica", "orthogonal"] = True

    def rank(self, module: str) -> int:
        """Returns a module's rank."""
        return _by_pattern(self.rank_pattern, module, self.r)

    def scaling(self, module: str) -> float:
        """Returns alpha / r, or alpha / √r where it is rank-stabilized."""
        alpha, rank = _by_pattern(self.alpha_pattern, module, self.lora_alpha), self.rank(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def saves(self, name: str) -> bool:
        """Returns whether a tensor belongs to a module that is saved whole."""
        modules = [name[: dot.start()] for dot in re.finditer(r"\.", name)]
        saved = (*self.modules_to_save, *_HEADS.get(self.task_type, ()))
        return any(module.endswith(saved) for module in modules)


def _by_pattern[Number: (int, float)](patterns: Mapping[str, Number], module: str, default: Number) -> Number:
    """Returns the number of the first pattern that matches a module. Source: peft, get_pattern_key."""
    try:
        matching = [pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", module)]
    except re.error as reason:
        raise InputError(f"{ADAPTER_CONFIG}: '{reason.pattern!r}' is no regular expression ({reason})") from reason
    return patterns[matching[0]] if matching else patterns.get(module, default)


def _read_config(source: str, path: Path) -> _Config:
    """Returns the settings. Raises: InputError naming the first one that is not handled."""
    if not path.is_file():
        raise InputError(f"{source}: not a PEFT adapter: it has no {ADAPTER_CONFIG}")
    settings = {key: value for key, value in read_json_object(path).items() if value is not None}
    problem = "is not handled"
    try:
        config = _Config.model_validate(settings)
        wrong = [key for key, value in (config.model_extra or {}).items() if value and key not in _HARMLESS]
    except ValidationError as reason:
        wrong, problem = [str(reason.errors()[0]["loc"][0])], reason.errors()[0]["msg"]
    if wrong:
        value = json.dumps(settings.get(wrong[0]))[:80]
        raise InputError(f"{source}: {ADAPTER_CONFIG}: '{wrong[0]}' is {value}, {problem}; {_MERGE}")
    return config


def _open_weights(source: str, directory: Path) -> Checkpoint:
    if (directory / "adapter_model.safetensors").is_file():
        return SafetensorsCheckpoint(source, [directory / "adapter_model.safetensors"], directory)
    if (directory / "adapter_model.bin").is_file():
        return TorchCheckpoint(source, [directory / "adapter_model.bin"], directory)
    raise InputError(f"{source}: has neither adapter_model.safetensors nor adapter_model.bin; download it again")


@dataclass(frozen=True)
class _Target:
    """Stored names of the factors, and of the base's weight where that was saved beside them (`*.base_layer`)."""

    a: str
    b: str
    weight: str | None
    rank: int
    scaling: float
    transposed: bool  # the weight is stored (in, out), so that the delta is (B A)ᵀ


class _Excerpt:
    """Some tensors of a checkpoint, under names of one's own; `stored` maps them to the checkpoint's."""

    def __init__(self, whole: Checkpoint, stored: Names, tensors: Mapping[str, TensorInfo], aliases: Names) -> None:
        self._whole, self._stored, self.tensors, self.aliases = whole, stored, dict(sorted(tensors.items())), aliases
        self.source, self.directory, self.hub_id = whole.source, whole.directory, whole.hub_id

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns entries [start, stop) of a tensor, flat, in its own dtype."""
        return self._whole.read(self._stored[name], start, stop)


class LoraVector(CheckpointPair):
    """The task vector of a PEFT LoRA directory on an open base.

    units holds the targets and those tensors of the base that were saved whole (biases,
    `modules_to_save`): nothing else changes, and a unit that is left out decodes to zeros.
    """

    def __init__(self, base: Checkpoint, source: str, selection: Selection = EVERYTHING) -> None:
        directory = locate(source)[0]
        config = _read_config(source, directory / ADAPTER_CONFIG)
        self._adapter = adapter = _open_weights(source, directory)
        stored = {**adapter.tensors, **{name: adapter.tensors[first] for name, first in adapter.aliases.items()}}
        factors, whole = _sort_names(source, stored)
        names = _base_names(base, [*factors, *whole])
        factors = {name: parts for name, parts in factors.items() if _selects(selection, name, names)}
        whole = {name: key for name, key in whole.items() if _selects(selection, name, names)}
        targets = _find_targets(base, source, config, stored, factors, names)
        infos = {name: base.tensors[names[name]] for name in targets}
        for name, key in whole.items():
            if name not in names and not config.saves(name):
                raise _unknown(source, key)
            infos[name] = stored[key]
        touched = {names[name]: base.tensors[names[name]] for name in infos if name in names}
        for unit, info in touched.items():
            _refuse_half_tied(base, unit, [name for name in infos if names.get(name) == unit])
        one, other = _Excerpt(base, {}, touched, base.aliases), _Excerpt(adapter, whole, infos, {})
        super().__init__(one, other, selection)
        self.base = base
        self._targets = {names[name]: target for name, target in targets.items()}
        units = [info for name, info in base.tensors.items() if selection.takes(name) and is_floating(info.dtype)]
        self.parameters = sum(info.entries for info in units if info.shape)
        if self.model.adapter is None:
            kind = detect_adapter(read_config(base), self.pairing.extras)
            self.model = self.model.model_copy(update={"adapter": kind})
