"""What a config.json may say about the model that is made of it: sizes and settings, never code."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.config import CODE_KEYS, without_keys

# Entries by which transformers picks code, quantised layers or the models of other libraries.
_PICKS_CODE = rf"{CODE_KEYS}|quantization_config|backbone|backbone_kwargs|use_(timm|pretrained)_backbone"
_OTHER_LIBRARIES = ("timm_wrapper", "timm_backbone")  # models that timm makes, perhaps by downloading them
# Entries that transformers reads although no field of its config classes has their names.
_OLD_NAMES = {"model_type", "num_labels", "rope_theta", "rope_scaling", "partial_rotary_factor"}
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


def without_code(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of a config.json but those, at any depth, that pick code."""
    found: dict[str, Any] = without_keys(entries, _PICKS_CODE)
    return found


def known_changes(kind: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the changes of a base's config.json that a task may make: to fields of its config class."""
    known = {field.name for field in dataclasses.fields(kind)} | set(kind.attribute_map) | _OLD_NAMES
    return {key: value for key, value in without_code(changes).items() if key in known}


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
