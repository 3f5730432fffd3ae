"""A checkpoint's config.json."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint

# How the weights on disk were quantised, at any depth. What is read here and written again are not those.
_QUANTISATION = ("quantization_config", "compression_config")


def read_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns a checkpoint's config.json without quantisation, empty if it has none. Raises: InputError."""
    config: dict[str, Any] = _without(_read(checkpoint), _QUANTISATION)
    return config


def read_quantisation(checkpoint: Checkpoint) -> list[Any]:
    """Returns the settings of a checkpoint's quantisation, none if it names none. Raises: InputError."""
    config = _read(checkpoint)
    return [settings for key in _QUANTISATION for settings in entries_named(config, key)]


def entries_named(document: object, key: str) -> Iterator[Any]:
    """Yields the values of a key at any depth of a JSON document, the outermost first."""
    if isinstance(document, dict):
        if document.get(key) is not None:
            yield document[key]
        for value in document.values():
            yield from entries_named(value, key)


def read_json_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises: InputError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as reason:
        raise InputError(f"{path}: is not JSON ({reason})") from reason
    if not isinstance(document, dict):
        raise InputError(f"{path}: holds a JSON {type(document).__name__}, expected an object")
    return document


def _read(checkpoint: Checkpoint) -> dict[str, Any]:
    if checkpoint.directory is None or not (checkpoint.directory / "config.json").is_file():
        return {}
    return read_json_object(checkpoint.directory / "config.json")


def _without(document: Any, keys: tuple[str, ...]) -> Any:
    if not isinstance(document, dict):
        return document
    return {key: _without(value, keys) for key, value in document.items() if key not in keys}
