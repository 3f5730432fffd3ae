"""Reads the JSON documents in flexswitch's files.

Every field is checked for presence, type and range before it is used.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from flexswitch.codecs.errors import ArtifactError, InputError
from flexswitch.codecs.format.records import CHECKSUM_KEY, crc32
from flexswitch.codecs.format.strict import Strict

Document = TypeVar("Document", bound=Strict)


def parse_document(kind: type[Document], path: Path, text: str, metadata: Mapping[str, str]) -> Document:
    """Returns a file's JSON document.

    Raises: InputError on a file of another format; ArtifactError on a wrong checksum, version or field.
    """
    if metadata.get(CHECKSUM_KEY) != crc32(text.encode()):
        raise ArtifactError(f"{path}: its header is damaged: the checksum in '{CHECKSUM_KEY}' does not fit")
    return parse_strict(kind, path, text)


def parse_strict(kind: type[Document], path: Path, text: str) -> Document:
    """Returns a JSON document of the given kind.

    Raises: InputError on a document of another kind; ArtifactError naming the first wrong field.
    """
    _check_format(kind, path, _parsed(path, text))
    return validated(kind, path, text)


def _parsed(path: Path, text: str) -> dict[str, object]:
    try:
        document = json.loads(text, object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as reason:
        raise ArtifactError(f"{path}: its JSON document does not parse ({reason})") from reason
    if not isinstance(document, dict):
        raise ArtifactError(f"{path}: its JSON document is a {type(document).__name__}, expected an object")
    return document


def unique_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Returns a JSON object. Raises: ValueError where a name stands twice; of two, json takes the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name '{twice}' stands twice in an object")
    return found


def _check_format(kind: type[Document], path: Path, document: dict[str, object]) -> None:
    expected, newest = (kind.model_fields[field].default for field in ("format", "version"))
    version, found = document.get("version"), document.get("format")
    if isinstance(found, str) and found != expected:
        raise InputError(f"{path}: its format is {found}, expected {expected}")
    if "version" in document and type(version) is not int:
        raise ArtifactError(f"{path}: its field 'version' is {version!r}, expected a whole number")
    if isinstance(version, int) and version > newest:
        raise ArtifactError(
            f"{path}: has format version {version}, this flexswitch reads {newest}; install a newer one"
        )


def validated(kind: type[Document], path: Path, text: str) -> Document:
    """Returns a JSON document of the given kind. Raises: ArtifactError naming the first wrong field."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as reason:
        first = reason.errors()[0]
        field = ".".join(str(step) for step in first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        raise ArtifactError(f"{path}: its field '{field}' is wrong: {problem}") from reason
