"""The small files of a fine-tuned model beside its weights, such as tokenizer and chat template.

A task vector carries those that differ from the base's, as extras of bytes: `file/NAME` is a whole file, or
without bytes one that only the base has; `entries/NAME` are the entries of a JSON object that differ. Nothing
in them may run code: only files of known names are carried, and none that names a class to import.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexswitch.codecs.errors import ArtifactError, InputError
from flexswitch.codecs.format.records import RawTensor
from flexswitch.codecs.format.tensor_names import ENTRIES, MODULE_FOLDER, WHOLE
from flexswitch.codecs.format.written_files import inside
from flexswitch.merging.checkpoints.config import CODE_KEYS, parse_json, without_keys
from flexswitch.merging.checkpoints.modules import MODULES, module_folders
from flexswitch.merging.task_vectors.file_checks import VOCABULARIES, foreign_class, read_base_json
from flexswitch.merging.task_vectors.model_changes import fitting

if TYPE_CHECKING:
    from flexswitch.merging.task_vectors.task_vector import TaskVector

MOST_FILE_BYTES, MOST_BYTES = 32 << 20, 64 << 20
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "*.model", "*.spm", "*.tiktoken", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_OTHERS = (
    "generation_config.json", "preprocessor_config.json", "processor_config.json", "sentence_*_config.json",
    "image_processor_config.json", "video_preprocessor_config.json", "config_sentence_transformers.json",
    MODULES,
)  # fmt: skip
_MODULE_CONFIG = re.compile(MODULE_FOLDER.pattern + r"/config\.json", re.ASCII)
# Entries that say where a file comes from, or which code to run with it.
_DROPPED = (
    f"{CODE_KEYS}|transformers_version|_commit_hash|_from_model_config|tokenizer_file|special_tokens_map_file"
)
_TOO_LARGE = f"its files beside the weights have over {MOST_BYTES:,} bytes in all, more than a task carries"


def changed_files(
    base: Path | None, finetuned: Path | None, cut: Collection[tuple[int, int]]
) -> dict[str, bytes]:
    """Returns the extras that carry the files of a fine-tuned model, none if it has no directory.

    cut: as `cut_rows` returns it; where tokens are left out, the base's tokenizer stays.
    Raises: InputError if they are too large or one names code.
    """
    if finetuned is None:
        return {}
    own, others = _files(finetuned), {} if base is None else _files(base)
    found: dict[str, bytes] = {}
    for name, file in own.items():
        if not cut or not _is_tokenizer(name):
            found |= _carried(name, file, others.get(name), cut)
    if any(map(_is_tokenizer, (name.partition("/")[2] for name in found))):
        found |= {WHOLE + name: b"" for name in others if _is_tokenizer(name) and name not in own}
    if reason := _problem(found):
        raise InputError(f"{finetuned}: {reason}; move it away")
    return dict(sorted(found.items()))


def read_files(source: str, sizes: Mapping[str, int], read: Callable[[str], RawTensor]) -> dict[str, bytes]:
    """Returns the files that a task vector carries. Raises: ArtifactError if they may not be written."""
    if sum(sizes.values()) > MOST_BYTES:
        raise ArtifactError(f"{source}: {_TOO_LARGE}")
    files = {name: read(name).data for name in sizes}
    if reason := _problem(files):
        raise ArtifactError(f"{source}: {reason}")
    return files


def stored_extras(
    vector: "TaskVector", names: Iterable[str] | None = None
) -> Iterator[tuple[str, RawTensor]]:
    """Yields what is stored whole: the task's own tensors, then its files as tensors of bytes.

    names: of the tensors; None for all.
    """
    for name in vector.extras if names is None else names:
        yield name, vector.extra(name)
    for name, data in vector.files.items():
        yield name, RawTensor("U8", (len(data),), data)


def changed_contents(base: Path | None, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Returns name → bytes of a fine-tuned model's files that differ from the base's, b"" of one to remove.

    base: the base's directory; files: as `changed_files` returns them.
    Raises: InputError if the base lacks a file of which only some entries are stored, or its file is no JSON
    or may not be copied.
    """
    contents: dict[str, bytes] = {}
    for extra, data in files.items():
        kind, _, name = extra.partition("/")
        if f"{kind}/" == WHOLE:
            contents[name] = data
            continue
        if base is None or not (base / name).is_file():
            raise InputError(f"the base has no {name}, of which the task changes entries; give its own base")
        before = read_base_json(base, name)
        if not isinstance(before, dict):
            raise InputError(f"{base / name}: holds a JSON {type(before).__name__}, expected an object")
        if name not in VOCABULARIES:
            before = without_keys(before)
        contents[name] = _dumped({**before, **json.loads(data)})
    return contents


def write_contents(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes files to a directory, and removes those without bytes."""
    for name, data in contents.items():
        path = inside(folder, name)
        path.parent.mkdir(exist_ok=True)
        if data:
            path.write_bytes(data)
        else:
            path.unlink(missing_ok=True)


def tokenizer_file_names(directory: Path) -> list[str]:
    """Returns the names of the files of a model's tokenizer."""
    return [name for name in _files(directory) if _is_tokenizer(name)]


def _files(directory: Path) -> dict[str, Path]:
    """Returns name → path of the small files of known names."""
    names = [path.name for path in sorted(directory.iterdir()) if _is_known(path.name)]
    names += [f"{folder}/config.json" for folder in module_folders(directory)]
    return {name: directory / name for name in names if (directory / name).is_file()}


def _is_tokenizer(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _TOKENIZER)


def _is_known(name: str) -> bool:
    if "/" in name:
        return _MODULE_CONFIG.fullmatch(name) is not None
    return re.fullmatch(r"\w[\w.-]*", name, re.ASCII) is not None and any(
        fnmatchcase(name, pattern) for pattern in (*_TOKENIZER, *_OTHERS)
    )


def _carried(name: str, file: Path, other: Path | None, cut: Collection[tuple[int, int]]) -> dict[str, bytes]:
    """Returns the extra that carries a file, none if it means the same as the base's."""
    size = file.stat().st_size
    if size > MOST_FILE_BYTES:
        raise InputError(
            f"{file}: has {size:,} bytes, and a task carries files of at most {MOST_FILE_BYTES:,}"
        )
    data = file.read_bytes()
    before = None if other is None else other.read_bytes()
    if data == before:
        return {}
    one, two = _plain(name, data), _plain(name, before or b"")
    if one is None:
        return {WHOLE + name: data}
    if cut and isinstance(one, dict):
        one = fitting(one, two if isinstance(two, dict) else {}, cut)
    if isinstance(one, dict) and isinstance(two, dict) and two.keys() <= one.keys():
        changed = {key: value for key, value in one.items() if key not in two or two[key] != value}
        return {ENTRIES + name: _dumped(changed)} if changed else {}
    return {} if one == two else {WHOLE + name: _dumped(one)}


def _problem(files: Mapping[str, bytes]) -> str | None:
    """Returns why files may not be carried or written, None if they may."""
    if sum(map(len, files.values())) > MOST_BYTES:
        return _TOO_LARGE
    for extra, data in files.items():
        name = extra.partition("/")[2]
        if not _is_known(name):
            return f"carries the file '{name}', which no model needs"
        document = _parsed(data) if name.endswith(".json") else None
        if data and not isinstance(document, dict if extra.startswith(ENTRIES) else (dict, list, type(None))):
            return f"its file '{name}' is not JSON"
        if name not in VOCABULARIES and without_keys(document) != document:
            return f"its file '{name}' names code to run"
        if found := foreign_class(name, document):
            return f"its file '{name}' names the class '{found}', which is code to run"
    return None


def _parsed(data: bytes) -> Any:
    """Returns a JSON document, None if it is none."""
    try:
        return parse_json(data)
    except ValueError:
        return None


def _plain(name: str, data: bytes) -> Any:
    """Returns a JSON file without what says where it comes from or which code to run, None for others."""
    document = _parsed(data) if name.endswith(".json") else None
    return document if name in VOCABULARIES else without_keys(document, _DROPPED)


def _dumped(document: Any) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
