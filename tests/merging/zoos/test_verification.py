"""Verification checks every bit of artifacts, zoos and task vectors, and names what is damaged."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import (
    MemoryCheckpoint,
    State,
    compressed,
    extracted,
    file_pair,
    flip_bit,
    message,
    save_model,
)
from support.zoo_files import index_file, task_file, write_index, write_zoo

from flexswitch.codecs.errors import ArtifactError, InputError
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.index_record import RoutingAccuracy
from flexswitch.codecs.format.records import crc32
from flexswitch.codecs.format.safetensors_file import read_header
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.checkpoints.fingerprint import fingerprint
from flexswitch.merging.compression.compress import compress
from flexswitch.merging.routing.query_set import QuerySet, QuerySetHeader
from flexswitch.merging.task_vectors.task_vector_file import TaskVectorFile
from flexswitch.merging.zoos.pack import Form, create_zoo
from flexswitch.merging.zoos.verify import verify

BASE: State = {"a": torch.zeros(20, 5), "b": torch.zeros(7), "n": torch.tensor([1])}
TUNED: State = {
    "a": torch.linspace(-1, 1, 100).reshape(20, 5),
    "b": torch.linspace(-2, 3, 7),
    "n": torch.tensor([2]),
    "head": torch.ones(3),
}
RESTORE = "restore the file from a copy, or compress it again"


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return compressed(file_pair(tmp_path, BASE, TUNED), tmp_path / "t.fsw")


@pytest.fixture
def zoo(tmp_path: Path, artifact: Artifact) -> Path:
    """A zoo of two tasks with a query index."""
    doubled = {name: tensor * 2 for name, tensor in TUNED.items()}
    (tmp_path / "other").mkdir()
    pair, other = file_pair(tmp_path / "other", BASE, doubled), tmp_path / "other" / "t.fsw"
    compress(pair, other, "other", "t-switch", {"drop": 0.6}, overwrite=False)
    path = tmp_path / "zoo"
    create_zoo(path, [artifact.path, other], Form(), None, False, lambda name: None)
    header = QuerySetHeader(tasks=["other", "task"], features="pooled", per_task=1, seed=0)
    queries = QuerySet(header, np.ones((2, 4), np.float32), np.array([0, 1], np.int32))
    write_index(path, queries)
    return path


def checked(path: Path, base: Path | None = None) -> list[str]:
    return verify(path, None if base is None else str(base), lambda item: None)


def problems(path: Path, base: Path | None = None) -> list[str]:
    """Returns the error's lines, one for each damaged tensor or file."""
    with pytest.raises(ArtifactError) as caught:
        checked(path, base)
    return str(caught.value).splitlines()


def damage(path: Path, tensor: str) -> tuple[str, str]:
    """Flips a bit in the middle of an extra or of a tensor's one block; returns the checksums found and expected."""
    header, start = open_artifact(path).header, read_header(path, InputError).tensors["data"].offset
    sizes = {name: record.size for name, record in (header.extras | header.tensors).items()}  # type: ignore[operator]
    names = list(sizes)
    start += sum(sizes[name] for name in names[: names.index(tensor)])
    size = sizes[tensor]
    good = crc32(path.read_bytes()[start : start + size])
    flip_bit(path, start + size // 2, 3)
    return crc32(path.read_bytes()[start : start + size]), good


def test_an_artifact_that_is_whole_passes(artifact: Artifact) -> None:
    names: list[str] = []
    lines = verify(artifact.path, None, names.append)
    assert lines == [f"{artifact.path}: 4 tensors, all checksums and counts match"]
    assert sorted(names) == ["a", "b", "head", "n"]


def test_the_whole_base_is_verified_if_it_is_given(tmp_path: Path, artifact: Artifact) -> None:
    base = tmp_path / "base.safetensors"
    whole = fingerprint(MemoryCheckpoint(BASE))
    assert checked(artifact.path, base) == [
        f"{artifact.path}: 4 tensors, all checksums and counts match",
        f"{base}: is the base; all its bytes match the fingerprint {whole[:12]}",
    ]


def test_another_base_fails_verification(tmp_path: Path, artifact: Artifact) -> None:
    other = BASE | {"b": torch.ones(7)}
    path = save_model(tmp_path / "base", other)
    assert message(InputError, lambda: checked(artifact.path, path)) == (
        f"{path}: is not the base of {artifact.path}: its fingerprint is "
        f"{fingerprint(MemoryCheckpoint(other))[:12]}, expected {fingerprint(MemoryCheckpoint(BASE))[:12]}; "
        "give the base it was made from"
    )


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        ("a", "tensor 'a', block 0,"),
        ("b", "tensor 'b', block 0,"),
        ("head", "extra 'head'"),
        ("n", "extra 'n'"),
    ],
)
def test_a_flipped_bit_of_a_payload_names_its_block(artifact: Artifact, tensor: str, what: str) -> None:
    bad, good = damage(artifact.path, tensor)
    assert problems(artifact.path) == [
        f"{artifact.path}: {what} is damaged: its checksum is {bad}, expected {good}; {RESTORE}"
    ]


def test_every_damaged_tensor_is_named(artifact: Artifact) -> None:
    for tensor in ("b", "head", "a"):
        damage(artifact.path, tensor)
    assert [line.split("'")[1] for line in problems(artifact.path)] == ["head", "a", "b"]


def test_a_flipped_bit_anywhere_in_an_artifact_is_found(artifact: Artifact) -> None:
    data = artifact.path.read_bytes()
    for offset in range(0, len(data), 7):
        flip_bit(artifact.path, offset, offset % 8)
        with pytest.raises((ArtifactError, InputError)):
            checked(artifact.path)
        artifact.path.write_bytes(data)
    checked(artifact.path)


def test_an_artifact_cut_short_is_found(artifact: Artifact) -> None:
    data = artifact.path.read_bytes()
    for size in range(0, len(data), 97):
        artifact.path.write_bytes(data[:size])
        assert problems(artifact.path)[0].startswith(f"{artifact.path}: ")


def test_a_zoo_that_is_whole_passes(zoo: Path) -> None:
    names: list[str] = []
    lines = verify(zoo, None, names.append)
    assert lines == [
        f"{zoo}: 2 tasks, all hashes, checksums and counts match",
        f"{zoo}: query index of 2 exemplars, its hash matches",
    ]
    assert sorted(names) == sorted(2 * ["a", "b", "head", "n"])


def test_a_zoo_names_the_tensors_of_every_damaged_task(zoo: Path) -> None:
    files = [task_file(zoo, "other"), task_file(zoo, "task")]
    damage(files[0], "a")
    damage(files[1], "head")
    lines = problems(zoo)
    assert [line.split(":")[0] for line in lines] == [str(file) for file in files]
    assert [line.split("'")[1] for line in lines] == ["a", "head"]


def test_a_zoo_names_a_task_that_is_missing_or_cut_short(zoo: Path) -> None:
    missing, short = task_file(zoo, "other"), task_file(zoo, "task")
    missing.unlink()
    short.write_bytes(short.read_bytes()[:-1])
    lines = problems(zoo)
    assert [line.split(":")[0] for line in lines] == [str(missing), str(short)]


def test_a_zoo_names_a_task_whose_file_was_replaced_by_another_whole_one(zoo: Path) -> None:
    file = task_file(zoo, "task")
    file.write_bytes(task_file(zoo, "other").read_bytes())
    (line,) = problems(zoo)
    assert line.startswith(f"{file}: is not the file that was packed as task 'task': ")


def test_a_zoo_names_a_damaged_query_index(zoo: Path) -> None:
    index = index_file(zoo)
    flip_bit(index, -1)
    (line,) = problems(zoo)
    assert line.startswith(f"{index}: is not the file that was packed as the query index: ")


def test_a_zoo_without_a_query_index_passes(zoo: Path) -> None:
    write_zoo(zoo, open_zoo(zoo).record.model_copy(update={"index": None}))
    assert checked(zoo) == [f"{zoo}: 2 tasks, all hashes, checksums and counts match"]


def test_the_base_of_a_zoo_is_verified_if_it_is_given(tmp_path: Path, zoo: Path) -> None:
    assert checked(zoo, tmp_path / "base.safetensors")[-1].startswith(
        f"{tmp_path}/base.safetensors: is the base"
    )
    other = save_model(tmp_path / "another", {"a": torch.ones(2)})
    assert message(InputError, lambda: checked(zoo, other)).startswith(f"{other}: is not the base of {zoo}: ")


def test_a_damaged_description_of_a_zoo_is_found(zoo: Path) -> None:
    document = json.loads((zoo / "zoo.json").read_text())
    document["tasks"]["task"]["file"] = "../task.fsw"
    (zoo / "zoo.json").write_text(json.dumps(document))
    assert problems(zoo)[0].startswith(f"{zoo}/zoo.json: task 'task' names the file '../task.fsw', expected ")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "method",
            "ties",
            "its field 'tasks.task.method' is 'ties', and {} says 't-switch'; pack the task again",
        ),
        ("parameters", 5, "its field 'tasks.task.parameters' is 5, and {} says 107; pack the task again"),
    ],
)
def test_a_field_of_a_task_that_its_artifact_contradicts_is_found(
    zoo: Path, field: str, value: object, message: str
) -> None:
    document = json.loads((zoo / "zoo.json").read_text())
    document["tasks"]["task"][field] = value
    (zoo / "zoo.json").write_text(json.dumps(document))
    assert problems(zoo) == [f"{zoo}/zoo.json: {message.format(document['tasks']['task']['file'])}"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("features", "layer:3"), ("dtype", "bfloat16"), ("normalise", "centred"), ("metric", "learned"),
        ("rank", 3), ("per_task", 2), ("seed", 5),
        ("accuracy", dict.fromkeys(RoutingAccuracy.model_fields, 90.0)),
    ],
)  # fmt: skip
def test_a_field_of_the_index_that_its_file_contradicts_is_found(
    zoo: Path, field: str, value: object
) -> None:
    document = json.loads((zoo / "zoo.json").read_text())
    document["index"][field] = value
    (zoo / "zoo.json").write_text(json.dumps(document))
    (problem,) = problems(zoo)
    assert problem.startswith(f"{zoo}/zoo.json: its field 'index.{field}' is ")


def test_a_task_vector_that_is_whole_passes(tmp_path: Path) -> None:
    path = extracted(file_pair(tmp_path, BASE, TUNED), tmp_path / "t.tv.safetensors").path
    names: list[str] = []
    assert verify(path, None, names.append) == [
        f"{path}: 4 tensors, all checksums match, all values are finite"
    ]
    assert names == [*TaskVectorFile(path).extras, "a", "b"]
    assert checked(path, tmp_path / "base.safetensors")[1].startswith(
        f"{tmp_path}/base.safetensors: is the base"
    )


def test_a_task_vector_names_every_tensor_with_a_flipped_bit(tmp_path: Path) -> None:
    path = extracted(file_pair(tmp_path, BASE, TUNED), tmp_path / "t.tv.safetensors").path
    whole = path.read_bytes()
    for name, stored in read_header(path, ArtifactError).tensors.items():
        damaged = bytearray(whole)
        damaged[stored.offset] ^= 1
        path.write_bytes(damaged)
        (problem,) = problems(path)
        tensor = name.removeprefix("extra/")
        expected = TaskVectorFile(path).header.crc32[name]
        assert problem.startswith(f"{path}: tensor '{tensor}' is damaged: checksum ")
        assert problem.endswith(
            f" of '{name}', expected {expected}; restore the file from a copy, or extract it again"
        )


def test_a_task_vector_names_the_tensors_that_are_not_finite(tmp_path: Path) -> None:
    path = extracted(file_pair(tmp_path, BASE, TUNED), tmp_path / "t.tv.safetensors").path
    data = bytearray(path.read_bytes())
    for name, number in (("a", math.nan), ("b", -math.inf)):
        stored = read_header(path, InputError).tensors[name]
        data[stored.offset + 4 : stored.offset + 8] = struct.pack("<f", number)
    path.write_bytes(data)
    assert problems(path) == [f"{path}: tensor '{name}' holds NaN or infinite values" for name in "ab"]


def test_other_files_and_folders_are_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", BASE)
    assert message(InputError, lambda: checked(folder)) == (
        f"{folder}: expected an artifact (.fsw), a zoo folder or a task vector (*.tv.safetensors)"
    )
    weights = folder / "model.safetensors"
    assert message(InputError, lambda: checked(weights)) == (
        f"{weights}: not a flexswitch artifact: its metadata lacks the key 'flexswitch'"
    )
    missing = tmp_path / "no.fsw"
    assert message(InputError, lambda: checked(missing)) == (
        f"{missing}: no such file; expected an artifact (.fsw) that `flexswitch compress` wrote"
    )
