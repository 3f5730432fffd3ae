"""The zoo directory: what is packed is read, and nothing else is taken for it."""

import json
import os
import shutil
from pathlib import Path

import pytest
from support.sparse_tensors import BASE, assert_same
from support.three_tasks import EXTRA, OTHER_BASE, Change, change_document, make_zoo, message, tensor
from support.zoo_files import index_file, task_file, write_zoo

from flexswitch.codecs.errors import ArtifactError, InputError
from flexswitch.codecs.format.zoo import TaskRecord, Zoo, ZooRecord, open_zoo


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A zoo of three tasks with a query index."""
    return make_zoo(tmp_path)


@pytest.fixture
def example(path: Path) -> Path:
    """The file of the task cola."""
    return task_file(path, "cola")


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
