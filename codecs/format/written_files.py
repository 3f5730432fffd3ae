"""The list of a folder's files that flexswitch wrote, by which --overwrite knows those of the user."""

import os
from pathlib import Path
from typing import Literal

from blake3 import blake3

from flexswitch.codecs.errors import FlexswitchError, InputError
from flexswitch.codecs.format.documents import parse_strict
from flexswitch.codecs.format.fields import Count
from flexswitch.codecs.format.strict import Strict

LIST_FILE = "flexswitch.json"


_HASHED_END = 1 << 20


class WrittenFile(Strict):
    """A file's size in bytes and the BLAKE3 hash of its first and last MiB, or of all if it has less."""

    size: Count
    ends: str


class WrittenFiles(Strict):
    """The JSON document `flexswitch.json`. files: by their paths in the folder."""

    format: Literal["flexswitch-output"] = "flexswitch-output"
    version: Literal[1] = 1
    files: dict[str, WrittenFile]


def list_files(folder: Path) -> None:
    """Writes the list of all files of a folder."""
    files = {file.relative_to(folder).as_posix(): _written(file) for file in _entries(folder)}
    text = WrittenFiles(files=dict(sorted(files.items()))).model_dump_json(indent=1) + "\n"
    (folder / LIST_FILE).write_text(text, encoding="utf-8")


def foreign_file(folder: Path) -> str | None:
    """Returns why a folder must not be replaced; None if every file in it is as flexswitch wrote it."""
    file = folder / LIST_FILE
    try:
        listed = parse_strict(WrittenFiles, file, file.read_text(encoding="utf-8")).files
    except (OSError, UnicodeDecodeError, FlexswitchError):
        return f"holds no {LIST_FILE} that lists what flexswitch wrote"
    for entry in _entries(folder):
        name = entry.relative_to(folder).as_posix()
        if name == LIST_FILE:
            continue
        if name not in listed or entry.is_symlink() or not entry.is_file():
            return f"holds {name}, which flexswitch did not write"
        if _written(entry) != listed[name]:
            return f"holds {name}, which was changed after flexswitch wrote it"
    return None


def inside(folder: Path, name: str) -> Path:
    """Returns the path of a file in a folder. Raises: InputError if the name leads out of the folder."""
    path = folder / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise InputError(f"{folder}: the file '{name}' would be written outside of it")
    return path


def _written(file: Path) -> WrittenFile:
    """Returns what the list says of a file. Weights of gigabytes that were trained on differ at both ends."""
    with file.open("rb") as data:
        size, digest = os.fstat(data.fileno()).st_size, blake3(data.read(_HASHED_END))
        data.seek(max(_HASHED_END, size - _HASHED_END))
        return WrittenFile(size=size, ends=digest.update(data.read(_HASHED_END)).hexdigest())


def _entries(folder: Path) -> list[Path]:
    """Returns all files and links in a folder and the empty folders in it, sorted."""
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        found += [Path(place, name) for name in (*files, *links)]
        if not folders and not files and Path(place) != folder:
            found.append(Path(place))
    return sorted(found)
