"""What a config.json may say about the model that is made of it: sizes and settings, never code."""

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.config import CODE_KEYS, without_keys

# Entries by which transformers picks code, quantised layers or the models of other libraries.
_PICKS_CODE = rf"{CODE_KEYS}|quantization_config|backbone|backbone_kwargs|use_(timm|pretrained)_backbone"
_NOT_WRITTEN = f"{CODE_KEYS}|quantization_config|compression_config"
_OTHER_LIBRARIES = ("timm_wrapper", "timm_backbone")  # models that timm makes, perhaps by downloading them
# Entries that change what a model returns; features and logits are read from its usual outputs.
_OUTPUTS = r"(use_)?return_dict|torchscript|output_(attentions|hidden_states|router_logits|scores|past)"
# Entries that transformers reads although no field of its config classes has their names.
_OLD_NAMES = {
    "model_type", "num_labels", "rope_theta", "rope_scaling", "partial_rotary_factor", "torch_dtype",
}  # fmt: skip
# What fine-tuning changes, where transformers cannot say which entries a config.json may have.
_USUAL = {"architectures", "dtype", "id2label", "label2id", "problem_type"} | _OLD_NAMES
_NEVER_DEFAULTS = {"architectures", "model_type", "dtype", "torch_dtype"}
_PLAIN = (bool, int, float, str, list, type(None))
_NUMBER_OF = re.compile(r"(n|num)_.*|n_?layers?|.*_(layers|labels|experts)|depths?")
_MOST = 100_000


def config_class(transformers: Any, entries: Mapping[str, Any], source: str) -> Any:
    """Returns the config class of a config.json. Raises: InputError if transformers has none of its own."""
    kind = entries.get("model_type")
    if not isinstance(kind, str):
        raise InputError(f"{source}: has no config.json with a 'model_type'; give a model directory")
    if kind in _OTHER_LIBRARIES or kind not in transformers.CONFIG_MAPPING:
        found = f"transformers {transformers.__version__} has no model type '{kind}'"
        if entries.get("auto_map"):
            found += ", and code that comes with a model is never run"
        raise InputError(f"{source}: {found}; give --adapter python:package.module:factory")
    return transformers.CONFIG_MAPPING[kind]


def model_entries(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of a config.json but those, at any depth, that pick code or other outputs."""
    found: dict[str, Any] = without_keys(entries, f"{_PICKS_CODE}|{_OUTPUTS}")
    return found


def known_changes(kind: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the changes of a base's config.json that a task may make: to fields of its config class."""
    known = _fields(kind)
    return {key: value for key, value in model_entries(changes).items() if key in known}


def written_changes(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the changes of a base's config.json that a restored model's gets.

    They are fields of transformers' config class of the restored model; of entries that the base has and that
    fine-tuning usually changes, where transformers is missing or has no such class.
    """
    kind = _installed_class({**base, **changes}.get("model_type")) if changes else None
    known = base.keys() | _USUAL if kind is None else _fields(kind)
    return {key: value for key, value in without_keys(changes, _NOT_WRITTEN).items() if key in known}


def written_config(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config.json of a restored model.

    Of a model of another type than the base's, as the text model of a vision-language model, the base's
    entries stay that transformers' config class of that type has, or all where it is not known.
    """
    own = changes.get("model_type", base.get("model_type"))
    kind = None if own == base.get("model_type") else _installed_class(own)
    kept = base if kind is None else {key: base[key] for key in base if key in _fields(kind)}
    return {**kept, **changes}


def with_defaults(base: Mapping[str, Any], finetuned: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a fine-tuned config.json with the entries of its base that it lacks, which are defaults then.

    They are those of transformers' config class, and none where transformers is missing or has no such class.
    """
    lacking = base.keys() - finetuned.keys() - _NEVER_DEFAULTS
    kind = _installed_class(finetuned.get("model_type")) if lacking else None
    if kind is None:
        return dict(finetuned)
    defaults = {key: list(each) if isinstance(each, tuple) else each for key, each in _defaults(kind).items()}
    defaults["rope_scaling"] = None  # an older name of a part of rope_parameters, which it would overrule
    lacking -= {kind.attribute_map.get(key) for key in finetuned}  # it has these by another name
    found = {key: defaults[key] for key in sorted(lacking & defaults.keys())}
    return {**finetuned, **{key: value for key, value in found.items() if isinstance(value, _PLAIN)}}


def _installed_class(model_type: object) -> Any:
    """Returns transformers' config class of a model type, None if there is none."""
    try:
        from transformers import CONFIG_MAPPING
    except ImportError:
        return None
    known = isinstance(model_type, str) and model_type in CONFIG_MAPPING
    return CONFIG_MAPPING[model_type] if known else None


def _fields(kind: Any) -> set[str]:
    return _defaults(kind).keys() | set(kind.attribute_map) | _OLD_NAMES


def _defaults(kind: Any) -> dict[str, Any]:
    """Returns the entries of a config class with their defaults.

    Since transformers 5.4 or so these are fields of a dataclass, and before arguments of a constructor.
    """
    if dataclasses.is_dataclass(kind):
        return {field.name: field.default for field in dataclasses.fields(kind)}
    found: dict[str, inspect.Parameter] = {}
    for each in reversed(kind.__mro__[:-1]):
        if "__init__" in vars(each):
            found |= inspect.signature(vars(each)["__init__"]).parameters
    return {name: each.default for name, each in found.items() if each.default is not each.empty}


def decoded_floats(value: Any) -> Any:
    """Returns config.json's entries with the floats that JSON lacks, as transformers writes them.

    >>> decoded_floats({"time_step_limit": [0.0, {"__float__": "Infinity"}]})
    {'time_step_limit': [0.0, inf]}
    """
    if isinstance(value, list):
        return [decoded_floats(part) for part in value]
    if not isinstance(value, Mapping):
        return value
    if list(value) == ["__float__"] and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
        return float(value["__float__"])
    return {name: decoded_floats(part) for name, part in value.items()}


def check_numbers(entries: Mapping[str, Any], source: str) -> None:
    """Raises: InputError where a config.json asks for more layers or classes than any model has."""
    for key, number in _numbers(entries):
        if _NUMBER_OF.fullmatch(key) and number > _MOST:
            raise InputError(
                f"{source}: its config.json asks for {key} {number:,}, expected {_MOST:,} at most"
            )


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Yields (key, number) of each number, inside lists too."""
    if isinstance(value, int | float):
        yield key, value
    for inner, part in value.items() if isinstance(value, Mapping) else ():
        yield from _numbers(part, inner)
    for part in value if isinstance(value, list) else ():
        yield from _numbers(part, key)
