"""Checkpoints of every kind are opened from their headers; anything else is refused in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import State, assert_same_state, message, save_model

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.safetensors_file import RangeReader
from flexswitch.merging.checkpoints import opening
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.config import read_config
from flexswitch.merging.checkpoints.opening import locate, open_checkpoint

NUMBERS = torch.tensor([[1.5, -2.0, 0.0], [0.25, 8.0, -0.5]])  # exact in every floating dtype
STATE: State = {
    "bf16": NUMBERS.to(torch.bfloat16),
    "bool": torch.tensor([True, False, True]),
    "empty": torch.empty(0, 4),
    "f16": NUMBERS.to(torch.float16),
    "f32": NUMBERS,
    "f64": NUMBERS.to(torch.float64),
    "f8_e4m3": NUMBERS.to(torch.float8_e4m3fn),
    "f8_e5m2": NUMBERS.to(torch.float8_e5m2),
    "i16": torch.tensor([-3, 4], dtype=torch.int16),
    "i64": torch.arange(5),
    "i8": torch.tensor([-3, 4], dtype=torch.int8),
    "u8": torch.tensor([250, 4], dtype=torch.uint8),
    "zero_dim": torch.tensor(2.5),
}


def whole(checkpoint: Checkpoint) -> State:
    return {name: checkpoint.read(name).reshape(info.shape) for name, info in checkpoint.tensors.items()}


def refused(path: Path) -> str:
    return message(InputError, lambda: open_checkpoint(str(path)))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_model_directory_contains_its_tensors(tmp_path: Path, kind: str, shards: int) -> None:
    folder = save_model(tmp_path / "model", STATE, {"model_type": "bert"}, kind, shards)
    checkpoint = open_checkpoint(str(folder))
    assert_same_state(whole(checkpoint), STATE)
    assert list(checkpoint.tensors) == sorted(STATE)
    assert (checkpoint.source, checkpoint.directory, checkpoint.hub_id) == (str(folder), folder, None)
    assert checkpoint.aliases == {}
    assert read_config(checkpoint) == {"model_type": "bert"}


@pytest.mark.parametrize("name", ["state.safetensors", "state.pt", "state.pth", "state.bin"])
def test_a_single_file_contains_its_tensors(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    (save_file if path.suffix == ".safetensors" else torch.save)(STATE, path)
    checkpoint = open_checkpoint(str(path))
    assert_same_state(whole(checkpoint), STATE)
    assert checkpoint.tensors["f8_e4m3"] == TensorInfo("F8_E4M3", (2, 3))
    assert checkpoint.tensors["zero_dim"].entries == 1
    assert (checkpoint.directory, read_config(checkpoint)) == (None, {})


def test_a_file_of_the_format_before_torch_1_6_contains_its_tensors(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in STATE.items() if not name.startswith("f8")}  # not there yet
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_same_state(whole(open_checkpoint(str(tmp_path / "old.pt"))), state)


def test_safetensors_are_preferred_to_a_copy_in_bin(tmp_path: Path) -> None:
    folder = save_model(tmp_path, {"w": torch.ones(2)}, kind="safetensors")
    save_model(tmp_path, {"w": torch.zeros(2)}, kind="bin")
    assert open_checkpoint(str(folder)).read("w").tolist() == [1, 1]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_any_range_of_a_tensor_can_be_read(tmp_path: Path, kind: str) -> None:
    checkpoint = open_checkpoint(str(save_model(tmp_path, STATE, kind=kind)))
    for name, tensor in STATE.items():
        flat = tensor.reshape(-1)
        for start, stop in [(0, None), (0, 0), (len(flat) // 3, len(flat) // 2), (len(flat) // 2, len(flat))]:
            found = checkpoint.read(name, start, stop)
            assert found.dtype == tensor.dtype
            assert torch.equal(found.to(torch.float64), flat[start:stop].to(torch.float64))


def test_a_range_touches_no_other_byte_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(
        {"a": torch.arange(1000.0), "b": torch.arange(1000).to(torch.int16)}, tmp_path / "m.safetensors"
    )
    checkpoint = open_checkpoint(str(tmp_path / "m.safetensors"))
    read, sizes = RangeReader.read, []

    def recording(self: RangeReader, offset: int, size: int) -> Any:
        sizes.append(size)
        return read(self, offset, size)

    monkeypatch.setattr(RangeReader, "read", recording)
    assert checkpoint.read("a", 998).tolist() == [998, 999]
    assert checkpoint.read("b", 10, 13).tolist() == [10, 11, 12]
    assert sizes == [8, 6]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_the_caller_may_change_the_entries_it_read(tmp_path: Path, kind: str) -> None:
    checkpoint = open_checkpoint(str(save_model(tmp_path, {"w": torch.arange(4.0)}, kind=kind)))
    checkpoint.read("w").zero_()
    checkpoint.read("w", 1, 3).zero_()
    assert checkpoint.read("w").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_reading_ahead_does_not_change_the_entries(tmp_path: Path, kind: str) -> None:
    folder = save_model(tmp_path, STATE, kind=kind, shards=2)
    checkpoint = open_checkpoint(str(folder))
    for name in STATE:
        checkpoint.read_ahead(name)
    assert_same_state(whole(checkpoint), STATE)
    assert checkpoint.files == sorted(folder.glob(f"*.{kind}"))


def test_a_tensor_that_is_not_contiguous_is_read_in_the_order_of_its_shape(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(6.0).reshape(2, 3).T}, tmp_path / "state.pt")
    checkpoint = open_checkpoint(str(tmp_path / "state.pt"))
    assert checkpoint.tensors["w"].shape == (3, 2)
    assert checkpoint.read("w", 1, 4).tolist() == [3, 1, 4]


def test_parameters_are_read_as_plain_tensors(tmp_path: Path) -> None:
    torch.save({"w": torch.nn.Parameter(torch.arange(3.0))}, tmp_path / "state.pt")
    assert not open_checkpoint(str(tmp_path / "state.pt")).read("w").requires_grad


@pytest.mark.parametrize("shards", [1, 2])
def test_a_tied_tensor_of_a_bin_has_one_name_and_aliases(tmp_path: Path, shards: int) -> None:
    shared = torch.arange(6.0).reshape(3, 2)
    state = {"tied.b": shared, "other": torch.ones(2), "tied.a": shared, "equal": shared.clone()}
    checkpoint = open_checkpoint(str(save_model(tmp_path, state, kind="bin", shards=shards)))
    assert list(checkpoint.tensors) == ["equal", "other", "tied.a"]
    assert checkpoint.aliases == {"tied.b": "tied.a"}


def test_views_of_another_shape_and_empty_tensors_are_not_tied(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    state = {
        "a": shared,
        "b": shared.reshape(2, 3),
        "c": shared[:3],
        "e": torch.empty(0),
        "f": torch.empty(0),
    }
    torch.save(state, tmp_path / "state.pt")
    checkpoint = open_checkpoint(str(tmp_path / "state.pt"))
    assert checkpoint.aliases == {}
    assert_same_state(whole(checkpoint), state)


def test_a_hub_id_is_fetched_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path, {"w": torch.ones(2)})
    fetched: list[str] = []
    monkeypatch.setattr(opening, "download_checkpoint", lambda name: fetched.append(name) or folder)
    checkpoint = open_checkpoint("org/no-such-folder@v1")
    assert (checkpoint.hub_id, checkpoint.directory) == ("org/no-such-folder@v1", folder)
    assert fetched == ["org/no-such-folder@v1"]


def test_a_missing_repository_is_reported_as_a_missing_path_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(name: str) -> Path:
        raise InputError(f"no repository '{name}'")

    monkeypatch.setattr(opening, "download_checkpoint", failing)
    found = refused(Path("org/no-such-folder"))
    assert (
        found
        == "org/no-such-folder: no such file or directory; from the hub: no repository 'org/no-such-folder'"
    )


def test_a_folder_named_like_a_hub_id_is_taken_as_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "org" / "name", {"w": torch.ones(2)})
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("org/name").hub_id is None


def test_an_adapter_beside_a_whole_model_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert locate(str(tmp_path)).is_adapter
    save_model(tmp_path, {"w": torch.ones(2)})
    assert not locate(str(tmp_path)).is_adapter
    assert open_checkpoint(str(tmp_path)).read("w").tolist() == [1, 1]
