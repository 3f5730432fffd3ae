"""A checkpoint's config.json."""

import json
from pathlib import Path
from typing import Any

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint


def read_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns a checkpoint's config.json, empty if it has none. Raises: InputError."""
    if checkpoint.directory is None or not (checkpoint.directory / "config.json").is_file():
        return {}
    return read_json_object(checkpoint.directory / "config.json")


def read_json_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises: InputError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as reason:
        raise InputError(f"{path}: is not JSON ({reason})") from reason
    if not isinstance(document, dict):
        raise InputError(f"{path}: holds a JSON {type(document).__name__}, expected an object")
    return document
