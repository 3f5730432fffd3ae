"""A base's files of which a task changes entries are read before the model is written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import message

from flexswitch.codecs.errors import ArtifactError, InputError
from flexswitch.codecs.format.records import RawTensor
from flexswitch.merging.commands.compress import compress
from flexswitch.merging.commands.merge import merge
from flexswitch.merging.task_vectors.side_files import read_files

NAME = "tokenizer_config.json"
NO_JSON: dict[str, bytes] = {
    "a list": b"[1]",
    "no JSON": b"{nope",
    "deeply nested": b"[" * 100_000,
    "deeply nested entries": b'{"a":' * 400 + b"1" + b"}" * 400,
    "another encoding": b'{"a": "\xff"}',
    "half a character": b'{"a": "\\ud800"}',
    "a number of many digits": b'{"a": ' + b"9" * 5000 + b"}",
}


def save_folder(folder: Path, value: float, settings: dict[str, object]) -> Path:
    folder.mkdir()
    save_file({"layer.weight": torch.arange(64.0).view(8, 8) + value}, folder / "model.safetensors")
    (folder / NAME).write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and an artifact that changes an entry of its tokenizer's settings."""
    folder = tmp_path_factory.mktemp("task")
    base = save_folder(folder / "base", 0, {"a": 1, "b": 2})
    finetuned = save_folder(folder / "finetuned", 0.5, {"a": 1, "b": 3})
    compress(finetuned, folder / "task.fsw", base=base)
    return folder


@pytest.mark.parametrize("situation", NO_JSON)
def test_a_base_s_file_that_is_no_object_is_named_and_nothing_is_written(
    task: Path, tmp_path: Path, situation: str
) -> None:
    base = shutil.copytree(task / "base", tmp_path / "base")
    (base / NAME).write_bytes(NO_JSON[situation])
    found = message(InputError, lambda: merge([task / "task.fsw"], tmp_path / "out", base=base, task="task"))
    assert found.startswith(f"{base / NAME}: ")
    assert list(tmp_path.iterdir()) == [base]


def test_a_base_without_the_file_is_refused_and_nothing_is_written(task: Path, tmp_path: Path) -> None:
    base = shutil.copytree(task / "base", tmp_path / "base")
    (base / NAME).unlink()
    found = message(InputError, lambda: merge([task / "task.fsw"], tmp_path / "out", base=base, task="task"))
    assert found == f"the base has no {NAME}, of which the task changes entries; give its own base"
    assert list(tmp_path.iterdir()) == [base]


def test_code_that_the_base_s_file_names_by_an_escape_is_left_out(task: Path, tmp_path: Path) -> None:
    base = shutil.copytree(task / "base", tmp_path / "base")
    (base / NAME).write_bytes(
        b'{"a": 1, "auto\\u005fmap": {"AutoTokenizer": ["own.Tokenizer", null]}, "b": 2}'
    )
    merge([task / "task.fsw"], tmp_path / "out", base=base, task="task")
    assert json.loads((tmp_path / "out" / NAME).read_bytes()) == {"a": 1, "b": 3}


@pytest.mark.parametrize("situation", NO_JSON)
def test_an_artifact_s_entries_that_are_no_object_are_refused(situation: str) -> None:
    data = NO_JSON[situation]
    name = f"entries/{NAME}"
    found = message(
        ArtifactError,
        lambda: read_files("task.fsw", {name: len(data)}, lambda _: RawTensor("U8", (len(data),), data)),
    )
    assert found == f"task.fsw: its file '{NAME}' is not JSON"
