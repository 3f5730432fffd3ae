"""Tests that no tensor's name, wherever it comes from, makes flexswitch write outside of the output."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.artifact_files import damage, rewrite, split
from support.checkpoints import file_pair, message
from support.tiny_models import changed_state, tiny_state

from flexswitch.codecs.errors import ArtifactError, InputError
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.commands.extract import extract
from flexswitch.merging.commands.merge import merge
from flexswitch.merging.task_vectors.model_directory import write_model_directory
from flexswitch.merging.task_vectors.restore import OutputTensor
from flexswitch.merging.task_vectors.task_vector_file import TaskVectorFile

ADVICE = "which only a module's tensor may have, as in 2_Dense/linear.weight; rename it if you trust the file"
NAMES = ["{}/evil", "../../evil", "a/b/c/d", "1_Dense/../../evil"]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def save_safetensors(path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, path)


def save_torch(path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("file", "save"), [("x.safetensors", save_safetensors), ("x.pt", save_torch)])
def test_a_checkpoint_with_such_a_name_is_not_opened(
    tmp_path: Path, name: str, file: str, save: Callable[[Path, dict[str, torch.Tensor]], None]
) -> None:
    name = name.format(tmp_path)
    save(tmp_path / file, {"w": torch.ones(2), name: torch.ones(3)})
    found = message(InputError, lambda: open_checkpoint(tmp_path / file))
    assert found == f"{tmp_path / file}: tensor '{name}' has a '/', {ADVICE}"


@pytest.mark.parametrize("name", NAMES)
def test_a_model_with_such_a_name_is_not_written(tmp_path: Path, name: str) -> None:
    name, folder = name.format(tmp_path), tmp_path / "inner"
    folder.mkdir()
    save_file({"w": torch.ones(3)}, folder / "base.safetensors")
    output = OutputTensor(TensorInfo("F32", (3,)), lambda: iter([torch.ones(3)]))
    before = files(tmp_path)
    found = message(
        InputError,
        lambda: write_model_directory(
            folder / "out", {name: output}, open_checkpoint(folder / "base.safetensors"), {}, str, 1000, False
        ),
    )
    assert found == f"{folder / 'out'}: tensor '{name}' has a '/', {ADVICE}"
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_task_vector_with_such_a_name_is_not_merged(tmp_path: Path, name: str) -> None:
    name = name.format(tmp_path)
    file, base = tmp_path / "t.tv.safetensors", tmp_path / "base.safetensors"
    save_file({"w": torch.ones(3)}, base)
    save_file({"w": torch.zeros(3), "own": torch.ones(3)}, tmp_path / "t.safetensors")
    extract(base, tmp_path / "t.safetensors", file)
    stored, data = split(file)
    rewrite(file, {f"extra/{name}" if key == "extra/own" else key: stored[key] for key in stored}, data)
    damage(file, lambda header: header["crc32"].update({f"extra/{name}": header["crc32"].pop("extra/own")}))
    expected = f"{file}: extra '{name}' has a '/', {ADVICE}"
    before = files(tmp_path)
    assert message(ArtifactError, lambda: TaskVectorFile(file)) == expected
    assert message(ArtifactError, lambda: merge([file], tmp_path / "out", base=base, task="t")) == expected
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["/evil", "../../out/evil", "{}/evil", "a/b/c/d", "a/b"])
def test_a_checkpoint_with_such_a_name_is_not_merged(tmp_path: Path, name: str) -> None:
    name = name.format(tmp_path / "victim")
    (tmp_path / "victim").mkdir()
    base = tiny_state()
    pair = file_pair(tmp_path, base, changed_state(base, 1))
    save_file({**changed_state(base, 1), name: torch.ones(3)}, pair.source)
    before = files(tmp_path)
    found = message(
        InputError,
        lambda: merge([pair.source], tmp_path / "out", base=pair.base.source, task=Path(pair.source).stem),
    )
    assert found == f"{pair.source}: tensor '{name}' has a '/', {ADVICE}"
    assert files(tmp_path) == before
    assert not Path("/model.safetensors").exists()
