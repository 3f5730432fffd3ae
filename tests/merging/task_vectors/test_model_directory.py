"""Restored and merged models as directories: shards, config, tokenizer files and model card."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.checkpoints import (
    State,
    assert_same_state,
    file_pair,
    memory_pair,
    message,
    save_model,
)
from support.task_vectors import write_restored
from torch import Tensor

from flexswitch.codecs.byte_size import parse_size
from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.codecs.format import atomic
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.checkpoints.safetensors_checkpoint import SafetensorsCheckpoint
from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.model_directory import model_card

BASE: State = {
    "flags": torch.tensor([True, False, True]),
    "half": torch.ones(5, dtype=torch.float16),
    "steps": torch.tensor(3),
    "words": torch.arange(300.0).reshape(30, 10),
}
TUNED: State = BASE | {"half": torch.full((5,), 1.5, dtype=torch.float16), "words": BASE["words"] * 2}
CONFIG = {"model_type": "bert", "layers": 2}


@pytest.fixture
def opened(tmp_path: Path) -> tuple[Checkpoint, CheckpointPair]:
    base = open_checkpoint(str(save_model(tmp_path / "base", BASE, CONFIG)))
    task = save_model(tmp_path / "task", TUNED, CONFIG | {"layers": 3, "labels": ["no", "yes"]})
    return base, CheckpointPair(base, open_checkpoint(str(task)))


def test_a_small_model_is_one_file_with_its_config_and_card(
    tmp_path: Path, opened: tuple[Checkpoint, CheckpointPair]
) -> None:
    path = write_restored(tmp_path / "out", *opened)
    assert sorted(file.name for file in path.iterdir()) == [
        "README.md",
        "config.json",
        "flexswitch.json",
        "model.safetensors",
    ]
    assert_same_state(load_file(path / "model.safetensors"), TUNED)
    with safe_open(path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert json.loads((path / "config.json").read_text()) == CONFIG | {"layers": 3, "labels": ["no", "yes"]}
    assert (path / "README.md").read_text() == "# card\n"


@pytest.mark.parametrize("shard_bytes", [1, 100, 1210, 1 << 20])
def test_a_large_model_is_cut_into_shards_with_an_index(
    tmp_path: Path, opened: tuple[Checkpoint, CheckpointPair], shard_bytes: int
) -> None:
    path = write_restored(tmp_path / "out", *opened, shard_bytes=shard_bytes)
    shards = sorted(file.name for file in path.glob("*.safetensors"))
    count = {1: 4, 100: 3, 1210: 2, 1 << 20: 1}[shard_bytes]
    if count == 1:
        assert shards == ["model.safetensors"]
        return
    assert shards == [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 8 + 1200 + 10 + 3}
    found: State = {}
    for shard in shards:
        tensors = load_file(path / shard)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= shard_bytes or len(tensors) == 1
        assert {index["weight_map"][name] for name in tensors} == {shard}
        found |= tensors
    assert list(index["weight_map"]) == sorted(TUNED)
    assert_same_state(found, TUNED)
    again = open_checkpoint(str(path))
    assert list(again.tensors) == sorted(TUNED)


def test_every_tensor_starts_at_a_multiple_of_its_width(
    tmp_path: Path, opened: tuple[Checkpoint, CheckpointPair]
) -> None:
    data = (write_restored(tmp_path / "out", *opened) / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    starts = {name: entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}
    for name, tensor in TUNED.items():
        assert (8 + length + starts[name]) % tensor.element_size() == 0, name


def test_tokenizer_files_are_copied_and_code_is_not(
    tmp_path: Path, opened: tuple[Checkpoint, CheckpointPair]
) -> None:
    base = opened[0].directory
    assert base is not None
    copied = ["chat_template.jinja", "generation_config.json", "merges.txt", "spiece.model", "tokenizer.json"]
    left = [
        "modeling_own.py",
        "README.md",
        "training_args.bin",
        "adapter_config.json",
        "a.safetensors.index.json",
    ]
    for name in [*copied, *left]:
        (base / name).write_text(f'{{"a": "{name}"}}')
    (base / "folder.json").mkdir()
    path = write_restored(tmp_path / "out", *opened)
    names = sorted(file.name for file in path.iterdir())
    assert names == sorted([*copied, "README.md", "config.json", "flexswitch.json", "model.safetensors"])
    assert all((path / name).read_text() == f'{{"a": "{name}"}}' for name in copied)


def test_a_base_that_is_one_file_has_no_config(tmp_path: Path) -> None:
    pair = file_pair(tmp_path, BASE, TUNED)
    path = write_restored(tmp_path / "out", pair.base, pair)
    assert sorted(file.name for file in path.iterdir()) == [
        "README.md",
        "flexswitch.json",
        "model.safetensors",
    ]


def test_an_existing_output_is_refused_and_kept(
    tmp_path: Path, opened: tuple[Checkpoint, CheckpointPair]
) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "mine").write_text("mine")
    found = message(InputError, lambda: write_restored(path, *opened))
    assert found == f"{path}: exists already; give another output, or --overwrite to replace it"
    assert [file.name for file in path.iterdir()] == ["mine"]
    found = message(InputError, lambda: write_restored(path, *opened, overwrite=True))
    refused = "so --overwrite does not replace it; give another output"
    assert found == f"{path}: holds no flexswitch.json that lists what flexswitch wrote, {refused}"
    (path / "mine").unlink()
    write_restored(path, *opened, overwrite=True)  # into an empty folder
    write_restored(path, *opened, overwrite=True)
    shutil.rmtree(path)
    path.write_text("a file")
    found = message(InputError, lambda: write_restored(path, *opened, overwrite=True))
    assert found == f"{path}: is a file, expected a folder; choose a folder name"


def test_an_output_in_no_folder_is_refused(tmp_path: Path, opened: tuple[Checkpoint, CheckpointPair]) -> None:
    path = tmp_path / "no" / "out"
    found = message(InputError, lambda: write_restored(path, *opened))
    assert found == f"{path}: the folder {path.parent} does not exist; make it first"


def test_a_failure_leaves_nothing_behind(tmp_path: Path, opened: tuple[Checkpoint, CheckpointPair]) -> None:
    def fail(name: str) -> None:
        if name == "half":
            raise KeyboardInterrupt

    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        write_restored(tmp_path / "out", *opened, on_tensor=fail)
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_is_noticed_before_a_weight_is_read(
    tmp_path: Path, opened: tuple[Checkpoint, CheckpointPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading(*arguments: object) -> Tensor:
        raise AssertionError("a weight is read")

    dict(opened[1].extras)  # whether a buffer differs decides what is written
    monkeypatch.setattr(SafetensorsCheckpoint, "read", reading)
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    path = tmp_path / "out"
    assert message(InputError, lambda: write_restored(path, *opened)) == (
        f"{path}: the output needs 1,221 bytes and the disk has 1,000 free; "
        "free some space or choose an output on another disk"
    )
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("400kb", 400_000),
        ("12345", 12345),
        ("3Mb", 3_000_000),
        ("2.5KB", 2500),
        ("1.5gb", 1_500_000_000),
        ("0.25MB", 250_000),
        ("0.002KB", 2),
        ("5 GB", 5_000_000_000),
        ("1.5TB", 1_500_000_000_000),
        ("2KiB", 2048),
    ],
)
def test_sizes_use_decimal_prefixes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0GB", "1.KB", "0.0001KB", "1.5.2MB", "5XB", "-1", "GB", "lots"])
def test_a_size_of_another_form_is_refused(text: str) -> None:
    assert message(UsageError, lambda: parse_size(text)) == (
        f"size '{text}': expected a number of bytes above 0, such as 5GB, 2.5KB or 12345"
    )


def test_a_card_describes_how_the_model_was_made() -> None:
    card = model_card("sst2", {"base": "org/base", "method": "restored"}, "flexswitch merge A --base BASE")
    assert card == (
        "---\ntags:\n- flexswitch\n- merge\n---\n\n# sst2\n\nMade with flexswitch.\n\n"
        "- base: org/base\n- method: restored\n\n    flexswitch merge A --base BASE\n"
    )


def test_a_card_shows_names_of_files_as_text() -> None:
    card = model_card("t", {"left out": "<b>[x](y)\n\x1b* `a`"}, "flexswitch merge A")
    assert "\n- left out: \\<b\\>\\[x\\](y)\\\\n\\\\x1b\\* \\`a\\`\n" in card


def test_a_task_s_output_does_not_depend_on_its_shards(tmp_path: Path) -> None:
    pair = memory_pair(BASE, TUNED)
    one, many = (
        write_restored(tmp_path / str(shard_bytes), pair.base, pair, shard_bytes=shard_bytes)
        for shard_bytes in (10**6, 9)
    )
    found: State = {}
    for file in many.glob("*.safetensors"):
        found |= load_file(file)
    assert_same_state(load_file(one / "model.safetensors"), found)
