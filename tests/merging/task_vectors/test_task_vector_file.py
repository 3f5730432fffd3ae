"""The task vector's file: it holds the vector it was written from; anything else is refused in one line."""

import json
import math
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.checkpoints import (
    MemoryCheckpoint,
    assert_same_state,
    compressed,
    extracted,
    file_pair,
    memory_pair,
    message,
    save_model,
)
from support.task_vectors import BASE, FINETUNED

from flexswitch.codecs.errors import ArtifactError, InputError
from flexswitch.codecs.format import atomic
from flexswitch.codecs.format.records import CHECKSUM_KEY, METADATA_KEY, crc32
from flexswitch.codecs.format.safetensors_file import SafetensorsWriter
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.checkpoints.safetensors_checkpoint import SafetensorsCheckpoint
from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.restore import restore
from flexswitch.merging.task_vectors.task_vector import delta_tensor
from flexswitch.merging.task_vectors.task_vector_file import TaskVectorFile, write_task_vector


def test_a_file_holds_what_it_was_written_from(tmp_path: Path) -> None:
    pair = file_pair(tmp_path, BASE, FINETUNED)
    vector = extracted(pair, tmp_path / "t.tv.safetensors")
    assert vector.header.name == "task"
    assert (vector.parameters, vector.model, vector.identity()) == (9, pair.model, pair.identity())
    assert vector.tensors == pair.tensors
    assert vector.extras == pair.extras
    for tensor in pair.tensors:
        assert torch.equal(delta_tensor(vector, tensor), delta_tensor(pair, tensor))
        assert [list(part) for part in vector.exact(tensor)] == [list(part) for part in pair.exact(tensor)]
    assert {name: vector.extra(name) for name in vector.extras} == {n: pair.extra(n) for n in pair.extras}
    assert_same_state(restore(str(tmp_path / "base.safetensors"), vector), FINETUNED)


def test_any_safetensors_reader_opens_the_file(tmp_path: Path) -> None:
    pair = file_pair(tmp_path, BASE, FINETUNED)
    path = extracted(pair, tmp_path / "t.tv.safetensors").path
    tensors = load_file(path)
    assert sorted(tensors) == [
        "empty.weight",
        "exact/w.bias/positions",
        "exact/w.bias/values",
        "extra/counter",
        "extra/head.mask",
        "extra/head.weight",
        "w.bias",
        "w.weight",
    ]
    assert torch.equal(tensors["w.weight"], delta_tensor(pair, "w.weight"))
    assert tensors["exact/w.bias/positions"].tolist() == [0]
    assert torch.equal(tensors["extra/head.weight"], FINETUNED["head.weight"])
    with safe_open(path, framework="numpy") as file:
        assert file.get_slice("w.weight")[1:].tolist() == [[1.5, 2.0, 2.5]]
        assert json.loads(file.metadata()[METADATA_KEY])["format"] == "flexswitch-task-vector"


def test_the_same_checkpoints_give_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        written.append(extracted(file_pair(folder, BASE, FINETUNED), folder / "t.tv.safetensors").path)
    shards = [save_model(tmp_path / str(n), state, shards=2) for n, state in enumerate((BASE, FINETUNED))]
    pair = CheckpointPair(*(open_checkpoint(str(folder)) for folder in shards))
    written.append(extracted(pair, tmp_path / "t.tv.safetensors").path)
    assert len({path.read_bytes() for path in written}) == 1


def test_bfloat16_halves_the_size_and_rounds_each_delta(tmp_path: Path) -> None:
    base, finetuned = {"w": torch.zeros(50)}, {"w": torch.randn(50)}
    pair = memory_pair(base, finetuned)
    vector = extracted(pair, tmp_path / "t.tv.safetensors", "bfloat16")
    stored = load_file(vector.path)
    assert list(stored) == ["w"]
    assert torch.equal(stored["w"], finetuned["w"].to(torch.bfloat16))
    assert torch.equal(
        restore(MemoryCheckpoint(base), vector)["w"], finetuned["w"].to(torch.bfloat16).float()
    )
    assert vector.tensors["w"].dtype == "F32"


def test_a_file_of_many_names_reserves_enough_space_for_its_header(tmp_path: Path) -> None:
    names = [f"layer.{number}.ü\n.weight" for number in range(400)]
    base = {name: torch.full((2,), 1e9) for name in names}
    finetuned = {name: torch.ones(2) for name in [*names, *(f"head.{number}" for number in range(100))]}
    vector = extracted(memory_pair(base, finetuned), tmp_path / "t.tv.safetensors")
    assert len(load_file(vector.path)) == 400 + 800 + 100
    data = vector.path.read_bytes()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    assert len(header) - len(header.rstrip(b" ")) >= 8  # spare space: the data has not been moved
    assert_same_state(restore(MemoryCheckpoint(base), vector), finetuned)


def test_the_config_and_the_prefix_are_recorded(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", {"w": torch.zeros(2)}, {"layers": 2, "limit": 1.0})
    config = {"layers": 2, "limit": math.inf, "title": "Größe", "eps": 1e-12}
    task = save_model(tmp_path / "task", {"bert.w": torch.ones(2)}, config)
    pair = CheckpointPair(open_checkpoint(str(base)), open_checkpoint(str(task)))
    vector = extracted(pair, tmp_path / "t.tv.safetensors")
    assert vector.model.config == {"limit": math.inf, "title": "Größe", "eps": 1e-12}
    assert vector.model.prefix == "bert."
    assert list(restore(str(base), vector)) == ["bert.w"]


def test_another_base_is_refused(tmp_path: Path) -> None:
    vector = extracted(
        memory_pair({"w": torch.zeros(2)}, {"w": torch.ones(2)}), tmp_path / "t.tv.safetensors"
    )
    other = MemoryCheckpoint({"w": torch.ones(2)}, "other")
    found = message(InputError, lambda: restore(other, vector))
    assert found.startswith(f"other: is not the base of {vector.source}: its fingerprint is ")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.tv.safetensors"
    assert message(InputError, lambda: TaskVectorFile(path)) == (
        f"{path}: no such file; expected a task vector that `flexswitch extract` wrote"
    )


def test_a_checkpoint_is_no_task_vector(tmp_path: Path) -> None:
    path = save_model(tmp_path, BASE) / "model.safetensors"
    assert message(InputError, lambda: TaskVectorFile(path)) == (
        f"{path}: not a task vector: its metadata lacks the key 'flexswitch'"
    )


def test_an_artifact_is_no_task_vector(tmp_path: Path) -> None:
    path = compressed(memory_pair(BASE, BASE), tmp_path / "t.tv.safetensors").path
    assert message(InputError, lambda: TaskVectorFile(path)) == (
        f"{path}: its format is flexswitch-artifact, expected flexswitch-task-vector"
    )


def rewritten(path: Path, **changes: object) -> Path:
    """Writes a task vector file's document anew with other fields, and no tensor but `w`."""
    with safe_open(path, framework="numpy") as file:
        document = json.loads(file.metadata()[METADATA_KEY])
    text = json.dumps(document | changes)
    with SafetensorsWriter(path, {METADATA_KEY: text, CHECKSUM_KEY: crc32(text.encode())}) as writer:
        writer.add("w", "F32", (2,), [bytes(8)])
    return path


def test_a_document_that_does_not_fit_the_file_is_refused(tmp_path: Path) -> None:
    path = extracted(
        memory_pair({"w": torch.zeros(2)}, {"w": torch.ones(2)}), tmp_path / "t.tv.safetensors"
    ).path
    rewritten(path, dtypes={"w": "F32", "x": "F32"})
    assert message(ArtifactError, lambda: TaskVectorFile(path)) == (
        f"{path}: tensor 'x' is named in its document but missing in the file"
    )
    rewritten(path, version=2)
    assert message(ArtifactError, lambda: TaskVectorFile(path)) == (
        f"{path}: has format version 2, this flexswitch reads 1; install a newer one"
    )
    rewritten(path, version=1, parameters=-1)
    assert message(ArtifactError, lambda: TaskVectorFile(path)) == (
        f"{path}: its field 'parameters' is wrong: Input should be greater than or equal to 0"
    )


def test_a_changed_document_is_refused(tmp_path: Path) -> None:
    path = extracted(
        memory_pair({"w": torch.zeros(2)}, {"w": torch.ones(2)}), tmp_path / "t.tv.safetensors"
    ).path
    path.write_bytes(path.read_bytes().replace(b'\\"parameters\\":2', b'\\"parameters\\":3'))
    assert message(ArtifactError, lambda: TaskVectorFile(path)) == (
        f"{path}: its header is damaged: the checksum in 'flexswitch_crc32' does not fit"
    )


def test_a_delta_that_is_not_finite_is_refused_as_it_is_read(tmp_path: Path) -> None:
    path = extracted(
        memory_pair({"w": torch.zeros(2)}, {"w": torch.ones(2)}), tmp_path / "t.tv.safetensors"
    ).path
    path.write_bytes(path.read_bytes()[:-4] + struct.pack("<f", math.nan))
    found = message(ArtifactError, lambda: compressed(TaskVectorFile(path), tmp_path / "t.fsw"))
    assert found == f"{path}: tensor 'w' holds NaN or infinite values"
    assert not (tmp_path / "t.fsw").exists()


def test_a_full_disk_is_noticed_before_a_weight_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = file_pair(tmp_path, BASE, FINETUNED)
    dict(pair.extras)  # whether a buffer differs decides what is written

    def reading(*arguments: object) -> torch.Tensor:
        raise AssertionError("a weight is read")

    class Usage:
        free = 10

    monkeypatch.setattr(SafetensorsCheckpoint, "read", reading)
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda path: Usage)
    path = tmp_path / "t.tv.safetensors"
    assert message(InputError, lambda: extracted(pair, path)) == (
        f"{path}: the output needs {4 * 9 + 8 + 3 + 6} bytes and the disk has 10 free; "
        "free some space or choose an output on another disk"
    )
    assert not path.exists()


def test_an_existing_file_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    pair, path = memory_pair(BASE, FINETUNED), tmp_path / "t.tv.safetensors"
    path.write_text("mine")
    found = message(InputError, lambda: write_task_vector(pair, path, "t", "float32", overwrite=False))
    assert found == f"{path}: exists already; give another output, or --overwrite to replace it"
    assert path.read_text() == "mine"
    seen: list[str] = []
    header = write_task_vector(pair, path, "t", "float32", overwrite=True, on_tensor=seen.append)
    assert TaskVectorFile(path).header == header
    assert seen == ["empty.weight", "w.bias", "w.weight"]
