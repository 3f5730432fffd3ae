"""A checkpoint's config.json."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint

# Entries by which transformers picks code: custom classes, and kernels of the hub.
CODE_KEYS = (
    r"auto_map|custom_pipelines|_?(attn|experts)_implementation(_internal)?|use_kernels|kernel_config"
    r"|_?name_or_path"
)
DTYPE_KEYS = ("dtype", "torch_dtype")
# How the weights on disk were quantised, at any depth. What is read here and written again are not those.
_QUANTISATION = ("quantization_config", "compression_config")
_MOST_LEVELS = 100
# What config.json calls the number of layers, Llama's name first; GPT-2's, MPT's and ChatGLM's.
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def without_keys(value: Any, pattern: str = CODE_KEYS) -> Any:
    """Returns a JSON value without the entries, at any depth, whose whole keys match the pattern."""
    if isinstance(value, Mapping):
        return {
            key: without_keys(part, pattern) for key, part in value.items() if not re.fullmatch(pattern, key)
        }
    return [without_keys(part, pattern) for part in value] if isinstance(value, list) else value


def read_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns a checkpoint's config.json without quantisation, empty if it has none. Raises: InputError."""
    config: dict[str, Any] = without_keys(_read(checkpoint), "|".join(_QUANTISATION))
    return config


def read_quantisation(checkpoint: Checkpoint) -> list[Any]:
    """Returns the settings of a checkpoint's quantisation, none if it names none. Raises: InputError."""
    config = _read(checkpoint)
    return [settings for key in _QUANTISATION for settings in entries_named(config, key)]


def layers_key(config: Mapping[str, Any]) -> str:
    """Returns the name by which a config.json tells the number of layers, the usual one if it does not."""
    return next((key for key in _LAYER_KEYS if key in config), _LAYER_KEYS[0])


def entries_named(document: object, key: str) -> Iterator[Any]:
    """Yields the values of a key at any depth of a JSON document, the outermost first."""
    if isinstance(document, dict):
        if document.get(key) is not None:
            yield document[key]
        for value in document.values():
            yield from entries_named(value, key)


def with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Returns a config.json that says, wherever it says so, that the weights have a dtype."""
    changed = {
        key: with_dtype(value, dtype) if isinstance(value, dict) else value for key, value in config.items()
    }
    return changed | {key: dtype for key in DTYPE_KEYS if config.get(key) is not None}


def read_json_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises: InputError."""
    document = read_json(path)
    if not isinstance(document, dict):
        raise InputError(f"{path}: holds a JSON {type(document).__name__}, expected an object")
    return document


def read_json(path: Path) -> Any:
    """Returns the JSON document in a file. Raises: InputError."""
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError as reason:
        raise InputError(f"{path}: no such file") from reason
    except ValueError as reason:
        raise InputError(f"{path}: is not JSON ({reason})") from reason


def parse_json(data: bytes) -> Any:
    """Returns the JSON document in UTF-8 bytes. Raises: ValueError, also if it is nested too deeply."""
    text = data.decode("utf-8")
    try:
        document = json.loads(text)
        if "\\u" in text:  # may escape half a surrogate pair, which no text has
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except RecursionError as reason:
        raise ValueError(str(reason)) from reason
    _check_depth(document)
    return document


def _check_depth(document: object) -> None:
    """Raises: ValueError where a JSON document is nested more deeply than any that is meant."""
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(_MOST_LEVELS):
        parts = [each.values() if isinstance(each, dict) else each for each in level]
        level = [part for each in parts for part in each if isinstance(part, dict | list)]
        if not level:
            return
    raise ValueError(f"nested more than {_MOST_LEVELS} levels deep")


def _read(checkpoint: Checkpoint) -> dict[str, Any]:
    if checkpoint.directory is None or not (checkpoint.directory / "config.json").is_file():
        return {}
    return read_json_object(checkpoint.directory / "config.json")
