"""The files of a zoo: those that were packed, and no others."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.three_tasks import OTHER_BASE, artifact_file, change_document, make_zoo, message
from support.zoo_files import index_file, task_file

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.zoo import content_name, file_sha256, open_zoo


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A zoo of three tasks with a query index."""
    return make_zoo(tmp_path)


@pytest.fixture
def example(path: Path) -> Path:
    """The file of the task cola."""
    return task_file(path, "cola")


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
