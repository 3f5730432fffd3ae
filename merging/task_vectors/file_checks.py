"""Checks the small files beside a base's weights before they are copied: what they name, where they lie."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.config import read_json, without_keys
from flexswitch.merging.checkpoints.modules import MODULES

VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json")  # their keys are tokens
_MOST_JSON_BYTES = 64 << 20
_ROUTER = "router_config.json"  # of sentence-transformers, which imports the classes that it names
_CLASS = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+", re.ASCII)
_KNOWN_CLASSES = ("torch.nn.", "sentence_transformers.")


def without_code(source: Path, name: str) -> bytes | None:
    """Returns a base's file without the entries that name code, None if it has none.

    Raises: InputError where it must not be copied, as `read_base_json` says.
    """
    if not name.endswith(".json") or name in VOCABULARIES:
        _check_place(source, source / name)
        return None
    document = read_base_json(source, name)
    kept = without_keys(document)
    return None if kept == document else (json.dumps(kept, indent=2) + "\n").encode()


def read_base_json(source: Path, name: str) -> Any:
    """Returns the JSON document in a base's file.

    Raises: InputError on a link that leaves the base, on what is no JSON, and where it names a foreign class.
    """
    file = source / name
    _check_place(source, file)
    if (size := file.stat().st_size) > _MOST_JSON_BYTES:
        raise InputError(f"{file}: has {size:,} bytes, expected {_MOST_JSON_BYTES:,} at most")
    document = read_json(file)
    if found := foreign_class(name, document):
        raise InputError(f"{file}: names the class '{found}', which is code to run")
    return document


def foreign_class(name: str, document: object) -> str | None:
    """Returns a class that a file of modules names and that is not torch's or sentence-transformers'."""
    if name not in (MODULES, _ROUTER) and "/" not in name:
        return None
    classes = (named for named in _strings(document) if _CLASS.fullmatch(named))
    return next((named for named in classes if not named.startswith(_KNOWN_CLASSES)), None)


def _check_place(source: Path, file: Path) -> None:
    """Raises: InputError unless a file lies in its folder or, in the hub's cache, in the repository's."""
    folder = Path(os.path.realpath(source))
    allowed = folder.parents[1] if folder.parent.name == "snapshots" else folder
    if not Path(os.path.realpath(file)).is_relative_to(allowed):
        raise InputError(f"{file}: is a link to a file outside the base; put the file itself there")


def _strings(document: Any) -> Iterator[str]:
    if isinstance(document, str):
        yield document
    for value in (
        document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    ):
        yield from _strings(value)
