"""Copies the small files beside a base's weights, such as its tokenizer, to a model that is made of it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.written_files import LIST_FILE
from flexswitch.merging.checkpoints.modules import module_folders
from flexswitch.merging.checkpoints.opening import ADAPTER_CONFIG
from flexswitch.merging.task_vectors.file_checks import without_code

_COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.spm")
# The last three describe weights that were quantised, as the written ones are not.
_NOT_COPIED = (
    "config.json",
    LIST_FILE,
    ADAPTER_CONFIG,
    "hf_quant_config.json",
    "quant_config.json",
    "quantize_config.json",
)


def copy_base_files(source: Path | None, target: Path, on_note: Callable[[str], None]) -> None:
    """Copies the small files of a base to a folder, without what names code to run.

    source: None copies none. on_note: called for each file that is left out: a link that leaves the base, a
    file that names a class of other libraries, and one that is no JSON.
    """
    for name in [] if source is None else _names(source):
        assert source is not None
        try:
            data = without_code(source, name)
        except InputError as reason:
            on_note(f"left out {reason}")
            continue
        (target / name).parent.mkdir(exist_ok=True)
        if data is None:
            shutil.copyfile(source / name, target / name)
        else:
            (target / name).write_bytes(data)


def _names(source: Path) -> Iterator[str]:
    for folder in module_folders(source):
        if (source / folder / "config.json").is_file():
            yield f"{folder}/config.json"
    for pattern in _COPIED:
        for file in sorted(source.glob(pattern)):
            wanted = file.name not in _NOT_COPIED and not file.name.endswith(".index.json")
            if wanted and file.is_file():
                yield file.name
