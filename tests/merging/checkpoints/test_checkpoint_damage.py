"""Damaged, hostile or foreign files: each is refused in one line, and none of their code is run."""

import json
import pickle
import struct
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from support import laws
from support.checkpoints import State, message, save_model

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints import dtypes
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.config import read_config
from flexswitch.merging.checkpoints.opening import open_checkpoint

STATE: State = {"a": torch.ones(3), "b": torch.zeros(2, 2), "c": torch.arange(5)}
CUT = "download or save it again"
SAVE = "save the model's state_dict() alone"
DOES_NOT_LOAD = "does not load as a state dict with weights_only"


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("a checkpoint's code has run",)


def whole(checkpoint: Checkpoint) -> State:
    return {name: checkpoint.read(name).reshape(info.shape) for name, info in checkpoint.tensors.items()}


def refused(path: Path) -> str:
    return message(InputError, lambda: open_checkpoint(str(path)))


def write_header(path: Path, header: object, data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no model"
    assert refused(path) == f"{path}: no such file or directory; expected a checkpoint, or a hub id org/name"


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert refused(tmp_path) == (
        f"{tmp_path}: not a checkpoint: it has none of model.safetensors, model.safetensors.index.json, "
        "pytorch_model.bin, pytorch_model.bin.index.json, adapter_config.json"
    )


@pytest.mark.parametrize(("name", "suffix"), [("weights.npz", ".npz"), ("weights", "")])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"PK")
    assert refused(path) == (
        f"{path}: not a checkpoint: the suffix is '{suffix}', expected .safetensors, .bin, .pt, .pth, .pth.tar or .ckpt"
    )


def test_an_adapter_is_refused_as_a_whole_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert refused(tmp_path) == (
        f"{tmp_path}: is a PEFT adapter, expected a whole model; give it as the fine-tuned checkpoint"
    )


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = save_model(tmp_path, STATE, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert refused(folder) == (
        f"{folder}/model.safetensors.index.json: names the shard 'model-00002-of-00003.safetensors', "
        "which is missing; download it again"
    )


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/secret.safetensors", "a/b.safetensors"])
def test_a_shard_outside_the_folder_is_refused(tmp_path: Path, shard: str) -> None:
    folder = save_model(tmp_path / "model", STATE, shards=2)
    save_file(STATE, tmp_path / "secret.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": shard}}))
    assert refused(folder) == f"{index}: names the shard '{shard}', expected a file of the same folder"


@pytest.mark.parametrize("shard", ["", ".", "..", "no\0name.safetensors"])
def test_a_shard_that_is_no_file_name_is_refused(tmp_path: Path, shard: str) -> None:
    folder = save_model(tmp_path, STATE, shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    assert "names the shard" in refused(folder)


@pytest.mark.parametrize("document", [{}, {"weight_map": {}}, {"weight_map": ["a"]}])
def test_an_index_without_a_weight_map_is_refused(tmp_path: Path, document: object) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps(document))
    assert refused(tmp_path) == f"{index}: has no 'weight_map' of tensor names to shard files"


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\xff"])
def test_an_index_that_is_not_json_is_refused(tmp_path: Path, text: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(text.encode("latin-1"))
    assert refused(tmp_path).startswith(f"{index}: is not JSON (")


def test_a_config_that_is_no_object_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(save_model(tmp_path, STATE)))
    (tmp_path / "config.json").write_text("[1]")
    found = message(InputError, lambda: read_config(checkpoint))
    assert found == f"{tmp_path}/config.json: holds a JSON list, expected an object"


@pytest.mark.parametrize("old_format", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, old_format: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": RunsCode()}, path, _use_new_zipfile_serialization=not old_format)
    assert refused(path) == f"{path}: {DOES_NOT_LOAD} (it holds a 'print'; {SAVE})"
    assert capsys.readouterr().out == ""


def test_an_object_that_is_no_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    torch.save({"w": torch.ones(1), "args": Namespace(lr=1)}, path)
    assert refused(path) == f"{path}: {DOES_NOT_LOAD} (it holds a 'argparse.Namespace'; {SAVE})"


def test_a_plain_pickle_is_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(pickle.dumps({"w": RunsCode()}, protocol=2))
    assert refused(path).startswith(f"{path}: {DOES_NOT_LOAD} (")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"model": {"w": torch.ones(1)}, "step": 3}, "'model' holds a dict"),
        ({"w": torch.ones(1), "step": 3}, "'step' holds a int"),
        ({0: torch.ones(1)}, "has a key that is a int"),
    ],
)
def test_anything_but_a_flat_dict_of_named_tensors_is_refused(
    tmp_path: Path, state: object, problem: str
) -> None:
    path = tmp_path / "state.pt"
    torch.save(state, path)
    assert refused(path) == f"{path}: not a state dict: {problem}, expected names of tensors; {SAVE}"


@pytest.mark.parametrize(("document", "kind"), [([1, 2], "list"), ({}, "dict"), (torch.ones(2), "Tensor")])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, document: object, kind: str) -> None:
    path = tmp_path / "state.pt"
    torch.save(document, path)
    assert refused(path) == f"{path}: holds a {kind}, expected a state dict of tensors"


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        (torch.ones(2, dtype=torch.complex64), "the dtype torch.complex64 and the layout torch.strided"),
        (torch.ones(2).to_sparse(), "the dtype torch.float32 and the layout torch.sparse_coo"),
    ],
)
def test_a_tensor_of_another_dtype_or_layout_is_refused(
    tmp_path: Path, tensor: torch.Tensor, found: str
) -> None:
    path = tmp_path / "state.pt"
    torch.save({"w": tensor}, path)
    assert refused(path) == f"{path}: tensor 'w' has {found}, which is not handled"


@pytest.mark.parametrize("old_format", [False, True])
def test_a_torch_file_cut_short_anywhere_is_refused_in_one_line(tmp_path: Path, old_format: bool) -> None:
    path = tmp_path / "state.pt"
    torch.save({"w": torch.ones(4)}, path, _use_new_zipfile_serialization=not old_format)
    data = path.read_bytes()
    for size in [*range(0, 40, 3), *range(40, len(data), 61), len(data) - 1]:
        path.write_bytes(data[:size])
        assert refused(path).startswith(f"{path}: {DOES_NOT_LOAD} (")


@laws.settings(150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_is_refused_or_read_and_never_ends_in_a_traceback(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / data.draw(st.sampled_from(["m.pt", "m.safetensors"]))
    (save_file if path.suffix == ".safetensors" else torch.save)(
        {"a": torch.ones(3), "b": torch.ones(2)}, path
    )
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        whole(open_checkpoint(str(path)))
    except InputError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017  # reading on is right too


def test_a_safetensors_file_cut_short_anywhere_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.ones(4), "v": torch.ones(2)}, path)
    data = path.read_bytes()
    for size in range(0, len(data), 5):
        path.write_bytes(data[:size])
        assert refused(path).startswith(f"{path}: ")


def test_a_file_that_asks_for_a_longer_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    assert refused(path) == (
        f"{path}: not a safetensors file, or cut short: its first bytes ask for a header of "
        f"1,152,921,504,606,846,976 bytes, and 2 follow; {CUT}"
    )


@pytest.mark.parametrize(("dtype", "shape"), [("F32", [3]), ("F32", []), ("F32", [1 << 62, 4])])
def test_a_header_that_lies_about_a_shape_is_refused(tmp_path: Path, dtype: str, shape: list[int]) -> None:
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, 8]}
    path = write_header(tmp_path / "m.safetensors", {"w": entry}, bytes(8))
    assert refused(path) == (
        f"{path}: its header lies: tensor 'w' of shape {shape} and dtype {dtype} has 8 bytes"
    )


def test_a_header_that_lies_about_an_offset_is_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [992, 1000]}
    path = write_header(tmp_path / "m.safetensors", {"w": entry}, bytes(8))
    size = path.stat().st_size
    assert refused(path) == (
        f"{path}: cut short, or its header lies: tensor 'w' ends at byte {size + 992:,} and the file at "
        f"{size}; {CUT}"
    )


def test_a_dtype_that_is_not_handled_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.ones(2, dtype=torch.uint64)}, path)
    monkeypatch.delitem(dtypes.TORCH_DTYPES, "U64")
    assert refused(path) == f"{path}: tensor 'w' has the dtype U64, which is not handled"


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0]},
        "F32",
    ],
)
def test_a_header_of_another_form_is_refused(tmp_path: Path, entry: object) -> None:
    path = write_header(tmp_path / "m.safetensors", {"w": entry}, bytes(8))
    assert refused(path).startswith(f"{path}: not a safetensors file: its header does not parse (")


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    path = write_header(tmp_path / "m.safetensors", {"a": entry, "b": entry}, bytes(8))
    assert refused(path).startswith(f"{path}: not a valid safetensors file (")


def test_a_file_that_shrinks_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.ones(4)}, path)
    checkpoint = open_checkpoint(str(path))
    path.write_bytes(path.read_bytes()[:-4])
    found = message(InputError, lambda: checkpoint.read("w"))
    assert found == f"{path}: was changed or replaced while it was read; run the command again"
