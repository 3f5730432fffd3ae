"""The zoo directory: what is packed is read, and nothing else is taken for it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.artifact_files import stored_form
from support.sparse_tensors import BASE, assert_same, header, sparse_tensor, write_artifact
from support.zoo_files import index_file, task_file, write_zoo, writer_of

from flexswitch.codecs.errors import ArtifactError, FlexswitchError, InputError
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.index_record import IndexRecord
from flexswitch.codecs.format.records import BaseIdentity, RawTensor
from flexswitch.codecs.format.zoo import TaskRecord, Zoo, ZooRecord, content_name, file_sha256, open_zoo
from flexswitch.codecs.format.zoo_writer import ZooWriter, pack_task
from flexswitch.codecs.registry import stored_codec
from flexswitch.codecs.sparse import SparseTensor

TASKS = ("trec6", "cola", "SST-2")
OTHER_BASE = BaseIdentity(fingerprint="12" * 32)
EXTRA = RawTensor("F32", (2,), bytes(8))

Change = Callable[[dict[str, Any]], object]


def tensor(task: str) -> SparseTensor:
    return sparse_tensor((4, 9), [TASKS.index(task), 11, 30], [1, 0, 1], 1)


def artifact_file(folder: Path, task: str, base: BaseIdentity = BASE) -> Path:
    path = folder / f"{task}-made-elsewhere.fsw"
    tensors = {"weight": (tensor(task), 0.5, stored_codec("raw", {}))}
    return write_artifact(path, tensors, {"head": EXTRA}, header(task, base=base))


def packed_task(file: Path, writer: ZooWriter) -> TaskRecord:
    artifact = open_artifact(file)
    return pack_task(artifact, writer, (stored_form(artifact, name) for name in artifact.header.tensors))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A zoo of three tasks with a query index."""
    path = tmp_path / "zoo"
    path.mkdir()
    writer = writer_of(path)
    tasks = {task: packed_task(artifact_file(tmp_path, task), writer) for task in TASKS}
    index = writer.put("index", "exemplars", lambda file: file.write_bytes(b"features"))
    record = IndexRecord(**index._asdict(), features="pooled", metric="euclidean", per_task=100, seed=0)
    writer.commit(ZooRecord(base=BASE, adapter="hf-encoder", tasks=tasks, index=record))
    return path


@pytest.fixture
def example(path: Path) -> Path:
    """The file of the task cola."""
    return task_file(path, "cola")


def change_document(path: Path, change: Change) -> None:
    file = path / "zoo.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def message(action: Callable[[], object], error: type[FlexswitchError] = ArtifactError) -> str:
    with pytest.raises(error) as caught:
        action()
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is packed is read


def test_a_zoo_gives_back_its_tasks(path: Path) -> None:
    zoo = open_zoo(path)
    assert len(zoo) == 3
    for task, artifact in zoo.items():
        assert artifact.header.name == task
        assert artifact.header.base == BASE
        assert artifact.header.method.name == zoo.record.tasks[task].method == "t-switch"
        assert artifact.header.parameters == zoo.record.tasks[task].parameters == 1000
        assert artifact.path == zoo.task_file(task) == path / zoo.record.tasks[task].file
        assert_same(artifact.sparse("weight"), tensor(task))
        assert artifact.header.tensors["weight"].scale == 0.5
        assert artifact.extra("head") == EXTRA
    assert zoo.record.adapter == "hf-encoder"
    assert zoo.index_file() == index_file(path)
    assert zoo.path == open_zoo(str(path)).path == path


def test_tasks_come_in_the_order_of_their_names(path: Path) -> None:
    assert list(open_zoo(path)) == ["SST-2", "cola", "trec6"]
    assert list(json.loads((path / "zoo.json").read_text())["tasks"]) == ["SST-2", "cola", "trec6"]
    change_document(path, lambda document: document.update(tasks=dict(reversed(document["tasks"].items()))))
    assert list(open_zoo(path)) == ["SST-2", "cola", "trec6"]


def test_a_task_is_opened_once(path: Path) -> None:
    zoo = open_zoo(path)
    assert zoo["cola"] is zoo["cola"]


def test_asking_for_a_task_opens_no_file(path: Path) -> None:
    shutil.rmtree(path / "tasks")
    zoo = open_zoo(path)
    assert "cola" in zoo
    assert "colour" not in zoo


def test_a_zoo_without_tasks_is_one(tmp_path: Path) -> None:
    write_zoo(tmp_path, ZooRecord(base=BASE, tasks={}))
    zoo = open_zoo(tmp_path)
    assert (len(zoo), list(zoo), zoo.record.index) == (0, [], None)
    found = message(lambda: zoo["cola"], InputError)
    assert found == f"{tmp_path}: no task is named 'cola' (known: none)"


# What is no zoo


def test_a_folder_without_a_description_is_refused(path: Path, example: Path) -> None:
    file = path / "zoo.json"
    for what in ("nothing", "a pipe", "a device", "a loop", "a folder"):  # reading two of them never ends
        file.unlink(missing_ok=True)
        if what == "a pipe":
            os.mkfifo(file)
        elif what in ("a device", "a loop"):
            file.symlink_to("/dev/zero" if what == "a device" else file)
        elif what == "a folder":
            file.mkdir()
        for place in (path, path / "missing", example):
            found = message(lambda place=place: open_zoo(place), InputError)  # type: ignore[misc]
            assert found == f"{place}: not a zoo: it has no zoo.json; make one with `flexswitch pack`"


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe{", b"[" * 100_000])
def test_a_description_that_does_not_parse_is_refused(path: Path, text: bytes) -> None:
    (path / "zoo.json").write_bytes(text)
    found = message(lambda: open_zoo(path))
    assert found.startswith(f"{path / 'zoo.json'}: its JSON document does not parse (")


@pytest.mark.parametrize(("text", "kind"), [("[]", "list"), ("7", "int"), ("null", "NoneType")])
def test_a_description_that_is_no_json_object_is_refused(path: Path, text: str, kind: str) -> None:
    (path / "zoo.json").write_text(text)
    found = message(lambda: open_zoo(path))
    assert found == f"{path / 'zoo.json'}: its JSON document is a {kind}, expected an object"


def test_another_document_is_refused(path: Path) -> None:
    change_document(path, lambda document: document.update(format="flexswitch-artifact"))
    found = message(lambda: open_zoo(path), InputError)
    assert found == f"{path / 'zoo.json'}: its format is flexswitch-artifact, expected flexswitch-zoo"


def test_a_newer_zoo_asks_for_a_newer_flexswitch(path: Path) -> None:
    change_document(path, lambda document: document.update(version=2, unheard_of=[]))
    expected = f"{path / 'zoo.json'}: has format version 2, this flexswitch reads 1; install a newer one"
    assert message(lambda: open_zoo(path)) == expected


NAME = "expected letters, digits, '.', '_' and '-', a letter or digit first"


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        (lambda d: d.update(colour="red"), "colour", "Extra inputs are not permitted"),
        (lambda d: d.update(version=0), "version", "Input should be 1"),
        (lambda d: d.update(format=[]), "format", "Input should be 'flexswitch-zoo'"),
        (lambda d: d.pop("tasks"), "tasks", "Field required"),
        (lambda d: d["tasks"]["cola"].update(size="1"), "tasks.cola.size", "Input should be a valid integer"),
        (lambda d: d["tasks"]["cola"].update(note=""), "tasks.cola.note", "Extra inputs are not permitted"),
        (lambda d: d["tasks"].update({"../x": d["tasks"]["cola"]}), "tasks.../x.[key]", NAME),
        (lambda d: d["tasks"].update({"": d["tasks"]["cola"]}), "tasks..[key]", NAME),
        (lambda d: d["tasks"].update({"cola\n": d["tasks"]["cola"]}), None, NAME),
        (
            lambda d: d["index"].update(per_task=0),
            "index.per_task",
            "Input should be greater than or equal to 1",
        ),
    ],
)
def test_a_wrong_field_is_named(path: Path, change: Change, field: str | None, expected: str) -> None:
    change_document(path, change)
    with pytest.raises(ArtifactError) as caught:
        open_zoo(path)
    found = str(caught.value)
    assert found.endswith(f" is wrong: {expected}")
    assert field is None or found == f"{path / 'zoo.json'}: its field '{field}' is wrong: {expected}"


@pytest.mark.parametrize(
    "file",
    ["../x.fsw", "tasks/../../cola.fsw", "/etc/passwd", "tasks/cola.fsw", "cola.fsw", "tasks//cola.fsw", ""],
)
def test_a_task_file_out_of_its_place_is_refused(path: Path, file: str) -> None:
    expected = open_zoo(path).record.tasks["cola"].file
    change_document(path, lambda document: document["tasks"]["cola"].update(file=file))
    assert message(lambda: open_zoo(path)) == (
        f"{path / 'zoo.json'}: task 'cola' names the file '{file}', expected '{expected}', which its hash gives; "
        "do not use a zoo that you did not make"
    )


def test_an_index_file_out_of_its_place_is_refused(path: Path) -> None:
    expected = open_zoo(path).record.index.file  # type: ignore[union-attr]
    change_document(path, lambda document: document["index"].update(file="../x.safetensors"))
    assert message(lambda: open_zoo(path)) == (
        f"{path / 'zoo.json'}: the query index names the file '../x.safetensors', expected '{expected}', which "
        "its hash gives; do not use a zoo that you did not make"
    )


# Tasks that are not those packed


def test_an_unknown_task_is_reported_with_the_nearest_name(path: Path) -> None:
    found = message(lambda: open_zoo(path)["trec"], InputError)
    assert found == f"{path}: no task is named 'trec'; did you mean 'trec6'? (known: SST-2, cola, trec6)"


def test_a_missing_task_file_is_reported(path: Path, example: Path) -> None:
    example.unlink()
    zoo = open_zoo(path)
    assert message(lambda: zoo["cola"]) == (
        f"{example}: missing; zoo.json lists it as task 'cola'; open the zoo again if another process has "
        "changed it, else pack or index it again"
    )
    assert zoo["trec6"].header.name == "trec6"


@pytest.mark.parametrize("change", [lambda data: data + b"\0", lambda data: data[:-1], lambda data: b""])
def test_a_task_file_of_another_size_is_reported(path: Path, change: Callable[[bytes], bytes]) -> None:
    file = task_file(path, "cola")
    size = file.stat().st_size
    file.write_bytes(change(file.read_bytes()))
    assert message(lambda: open_zoo(path)["cola"]) == (
        f"{file}: is not the file that was packed as task 'cola': {file.stat().st_size:,} bytes where "
        f"zoo.json says {size:,}, or another SHA-256; restore it from a copy, or pack it again"
    )


def test_a_task_file_of_the_same_size_and_another_hash_is_reported(path: Path) -> None:
    file = task_file(path, "cola")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    found = message(lambda: open_zoo(path)["cola"])
    assert found.startswith(f"{file}: is not the file that was packed as task 'cola': ")


def test_two_swapped_task_files_are_reported(path: Path) -> None:
    one, two = task_file(path, "cola"), task_file(path, "trec6")
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    for task in ("cola", "trec6"):
        found = message(lambda task=task: open_zoo(path)[task])  # type: ignore[misc]
        assert f"is not the file that was packed as task '{task}'" in found


def list_file(path: Path, task: str) -> None:
    """Makes zoo.json list a task's file as it now is, under the name of its content."""
    file = task_file(path, task)
    digest = file_sha256(file)
    name = content_name("tasks", task, digest)
    listed = {"file": name, "size": file.stat().st_size, "sha256": digest}
    file.rename(path / name)
    change_document(path, lambda document: document["tasks"][task].update(listed))


def test_a_file_of_another_task_is_reported_even_where_its_hash_is_listed(path: Path) -> None:
    shutil.copy(task_file(path, "trec6"), task_file(path, "cola"))
    list_file(path, "cola")
    assert message(lambda: open_zoo(path)["cola"]) == (
        f"{task_file(path, 'cola')}: holds task 'trec6' of base abababababab, expected task 'cola' of base "
        "abababababab; pack the zoo again"
    )


def test_a_file_of_another_base_is_reported_even_where_its_hash_is_listed(path: Path, tmp_path: Path) -> None:
    shutil.copy(artifact_file(tmp_path, "cola", OTHER_BASE), task_file(path, "cola"))
    list_file(path, "cola")
    assert message(lambda: open_zoo(path)["cola"]) == (
        f"{task_file(path, 'cola')}: holds task 'cola' of base 121212121212, expected task 'cola' of base "
        "abababababab; pack the zoo again"
    )


# The query index


def test_a_zoo_without_a_query_index_says_how_to_build_one(path: Path) -> None:
    change_document(path, lambda document: document.update(index=None))
    assert message(open_zoo(path).index_file, InputError) == (
        f"{path}: the zoo has no query index; build one: flexswitch index {path} --base BASE --exemplars DIR"
    )


def test_a_changed_query_index_is_reported(path: Path) -> None:
    file = index_file(path)
    file.write_bytes(b"Features")
    assert message(open_zoo(path).index_file) == (
        f"{file}: is not the file that was packed as the query index: 8 bytes where zoo.json says 8, or "
        "another SHA-256; restore it from a copy, or pack it again"
    )
    file.unlink()
    assert message(open_zoo(path).index_file) == (
        f"{file}: missing; zoo.json lists it as the query index; open the zoo again if another process has "
        "changed it, else pack or index it again"
    )


# The description


def test_an_interrupted_change_leaves_the_zoo_before_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (path / "zoo.json").read_bytes()

    def interrupt(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_zoo(path, ZooRecord(base=BASE, tasks={}))
    assert (path / "zoo.json").read_bytes() == before


def test_the_description_is_json_that_people_can_read(tmp_path: Path) -> None:
    file = f"tasks/cola.{16 * '0'}.fsw"
    task = TaskRecord(file=file, size=7, sha256="00" * 32, method="t-switch", parameters=9)
    write_zoo(tmp_path, ZooRecord(base=OTHER_BASE, tasks={"cola": task}))
    text = (tmp_path / "zoo.json").read_text()
    assert text.endswith("}\n")
    assert text.startswith('{\n "format": "flexswitch-zoo",\n "version": 1,\n "base": {\n')
    assert json.loads(text) == {
        "format": "flexswitch-zoo",
        "version": 1,
        "base": {"fingerprint": "12" * 32, "id": None},
        "adapter": None,
        "tasks": {
            "cola": {
                "file": file, "size": 7, "sha256": "00" * 32, "method": "t-switch", "parameters": 9,
                "relative_error": None,
            }
        },
        "shared": None,
        "index": None,
    }  # fmt: skip
    assert isinstance(open_zoo(tmp_path), Zoo)
