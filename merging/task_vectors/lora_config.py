"""The settings of a PEFT LoRA in adapter_config.json; those that are not handled exactly are refused."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.architecture import TASK_HEADS
from flexswitch.merging.checkpoints.config import read_json_object
from flexswitch.merging.checkpoints.opening import ADAPTER_CONFIG

MERGE_HINT = "merge the adapter into its base with peft and give the merged model"
# Tasks without a language model's head; old releases of peft save their heads without naming them.
_HEADLESS_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
# Settings that do not change the meaning of the stored weights. Any unknown setting must be empty.
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules",
}  # fmt: skip
_MOST_REPEATS = 2


def _module_pattern(pattern: str) -> str:
    """Returns the expression that matches a module's whole name. Source: peft, get_pattern_key."""
    return rf"(.*\.)?({pattern})$"


def _check_pattern(pattern: str) -> str:
    plain = re.sub(r"\\.|\[[^\]]*\]", "x", pattern)  # without escaped letters and sets of letters
    if len(re.findall(r"[*+?{]", plain)) > _MOST_REPEATS or re.search(r"\)[*+?{]", plain):
        raise ValueError(
            f"at most {_MOST_REPEATS} repeats (* + ? {{}}) and none of a group, for matching to be quick; "
            f"'{pattern}' has more"
        )
    try:
        re.compile(_module_pattern(pattern))
    except re.error as reason:
        raise ValueError(f"regular expressions; '{pattern}' is none ({reason})") from reason
    return pattern


Rank = Annotated[int, Field(gt=0, lt=1 << 31)]
Pattern = Annotated[str, AfterValidator(_check_pattern)]


class LoraConfig(BaseModel):
    """The settings that determine the meaning of the weights, with peft's defaults."""

    model_config = ConfigDict(extra="allow", strict=True)

    peft_type: Literal["LORA"]
    r: Rank = 8
    lora_alpha: FiniteFloat = 8.0
    use_rslora: bool = False
    rank_pattern: dict[Pattern, Rank] = {}
    alpha_pattern: dict[Pattern, FiniteFloat] = {}
    fan_in_fan_out: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    modules_to_save: list[str] = []
    task_type: str = ""
    # Initialisations that leave the base unchanged; pissa, olora, corda, loftq and lora_ga change it.
    init_lora_weights: Literal[True, False, "eva", "gaussian", "mica", "orthogonal"] = True

    @property
    def uses_language_head(self) -> bool:
        """Whether the adapted model may use the head of a language model."""
        return self.task_type not in _HEADLESS_TASKS

    def rank_and_scaling(self, module: str) -> tuple[int, float]:
        """Returns a module's rank r, and alpha / r, or alpha / √r if it is rank-stabilised."""
        rank = int(_by_pattern(self.rank_pattern, module, self.r))
        alpha = _by_pattern(self.alpha_pattern, module, self.lora_alpha)
        return rank, alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def saves(self, name: str) -> bool:
        """Returns whether a tensor belongs to a module that is saved whole."""
        modules = (*self.modules_to_save, *(() if self.uses_language_head else TASK_HEADS))
        return any(name[: dot.start()].endswith(modules) for dot in re.finditer(r"\.", name))


def _by_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    for pattern, number in patterns.items():
        if re.match(_module_pattern(pattern), module):
            return number
    return patterns.get(module, default)


def read_lora_config(source: str, path: Path) -> LoraConfig:
    """Returns the settings in adapter_config.json. Raises: InputError naming the first one not handled."""
    if not path.is_file():
        raise InputError(f"{source}: not a PEFT adapter: it has no {ADAPTER_CONFIG}")
    given = {key: value for key, value in read_json_object(path).items() if value is not None}
    settings = {"peft_type": None, **given}
    try:
        config = LoraConfig.model_validate(settings)
        wrong = [key for key, value in (config.model_extra or {}).items() if value and key not in _HARMLESS]
        problem = "which is not handled"
    except ValidationError as reason:
        first = reason.errors()[0]
        wrong = [str(first["loc"][0])]
        problem = re.sub(r"^(Input should be|Value error,)", "expected", first["msg"])
    if wrong:
        value = json.dumps(settings[wrong[0]])[:80]
        raise InputError(f"{source}: {ADAPTER_CONFIG} has '{wrong[0]}': {value}, {problem}; {MERGE_HINT}")
    return config
