"""A zoo's writer waits for others, follows no link, and deletes nothing that flexswitch did not put there."""

import errno
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from support.checkpoints import message
from support.commands import files_below
from support.sparse_tensors import BASE
from support.zoo_files import write_zoo

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.zoo import TaskRecord, ZooRecord, open_zoo, read_zoo
from flexswitch.codecs.format.zoo_writer import LOCK_FILE, Wait, ZooWriter, new_zoo_writer, zoo_writer


def stored(writer: ZooWriter, task: str, data: bytes) -> TaskRecord:
    """Stores some bytes as a task's file."""
    file = writer.put("tasks", task, lambda path: path.write_bytes(data))
    return TaskRecord(**file._asdict(), method="t-switch", parameters=1)


def record(**tasks: TaskRecord) -> ZooRecord:
    return ZooRecord(base=BASE, tasks=tasks)


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """A zoo of the tasks `a` and `b`."""
    path = tmp_path / "zoo"
    with new_zoo_writer(path, overwrite=False) as writer:
        writer.commit(record(a=stored(writer, "a", b"a"), b=stored(writer, "b", b"b")))
    return path


def remove(path: Path, task: str) -> None:
    with zoo_writer(path) as writer:
        left = {name: each for name, each in open_zoo(path).record.tasks.items() if name != task}
        writer.commit(record(**left))


# Waiting


def test_a_second_writer_waits_with_a_note(zoo: Path) -> None:
    notes: list[str] = []
    noted = threading.Event()

    def note(text: str) -> None:
        notes.append(text)
        noted.set()

    def add() -> None:
        with zoo_writer(zoo, Wait(None, note)) as writer:
            writer.commit(record(**open_zoo(zoo).record.tasks, c=stored(writer, "c", b"c")))

    with zoo_writer(zoo) as writer:
        second = threading.Thread(target=add)
        second.start()
        assert noted.wait(10)
        writer.commit(record(**open_zoo(zoo).record.tasks, d=stored(writer, "d", b"d")))
    second.join()
    assert notes == [f"waiting for another writer of {zoo}"]
    assert sorted(open_zoo(zoo).record.tasks) == ["a", "b", "c", "d"]


def test_a_writer_does_not_wait_longer_than_it_is_told(zoo: Path) -> None:
    notes: list[str] = []
    with zoo_writer(zoo):
        found = message(InputError, lambda: zoo_writer(zoo, Wait(0.2, notes.append)).__enter__())
    assert found == (
        f"{zoo}: another process still writes to it after 0.2 seconds; run the command again when it has ended, "
        "or give a longer --lock-timeout"
    )
    assert notes == [f"waiting for another writer of {zoo}"]
    with zoo_writer(zoo):
        pass


def test_a_zoo_that_is_moved_away_while_a_writer_waits_is_named(zoo: Path) -> None:
    errors: list[str] = []
    noted = threading.Event()

    def add() -> None:
        errors.append(message(InputError, lambda: change(Wait(None, lambda _: noted.set()))))

    def change(wait: Wait) -> None:
        with zoo_writer(zoo, wait):
            pytest.fail("there was a writer")

    with zoo_writer(zoo):
        second = threading.Thread(target=add)
        second.start()
        assert noted.wait(10)
        (zoo / "zoo.json").rename(zoo / "moved.json")
    second.join()
    assert errors == [f"{zoo}: not a zoo: it has no zoo.json; make one with `flexswitch pack`"]


def test_reading_takes_no_lock_and_leaves_nothing(zoo: Path) -> None:
    before = sorted(os.listdir(zoo))
    with zoo_writer(zoo):
        assert read_zoo(zoo, len) == 2
    (zoo / LOCK_FILE).unlink(missing_ok=True)
    read_zoo(zoo, list)
    assert sorted(os.listdir(zoo)) == before


# Links


def linked(zoo: Path, name: str) -> Path:
    """Moves a part of a zoo elsewhere and puts a link in its place; returns the place."""
    elsewhere = zoo.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    target = elsewhere / name.strip(".")
    if (zoo / name).exists():
        (zoo / name).rename(target)
    else:
        target.mkdir()
        (target / f"exemplars.{16 * '0'}.safetensors").write_bytes(b"mine")
    (zoo / name).symlink_to(target)
    return elsewhere


@pytest.mark.parametrize("name", ["tasks", "index", "zoo.json", LOCK_FILE])
def test_a_zoo_with_a_link_inside_is_not_changed(zoo: Path, name: str) -> None:
    (zoo / LOCK_FILE).touch()
    elsewhere = linked(zoo, name)
    before = files_below(zoo.parent)
    found = message(InputError, lambda: remove(zoo, "a"))
    copy = f"cp -RL {zoo} COPY"
    assert found == (
        f"{zoo / name}: is a link, and flexswitch changes nothing through links; copy the zoo with `{copy}` and "
        "change the copy"
    )
    assert files_below(zoo.parent) == before
    subprocess.run(copy, shell=True, check=True, cwd=elsewhere)
    if name != LOCK_FILE:
        remove(elsewhere / "COPY", "a")
        assert list(open_zoo(elsewhere / "COPY").record.tasks) == ["b"]


@pytest.mark.parametrize("name", ["tasks", "index"])
def test_a_zoo_with_a_file_in_the_place_of_a_folder_is_not_changed(zoo: Path, name: str) -> None:
    shutil.rmtree(zoo / name, ignore_errors=True)
    (zoo / name).write_text("mine")
    found = message(InputError, lambda: remove(zoo, "a"))
    assert found == f"{zoo / name}: is a file, expected a folder; move it out of the zoo"
    assert (zoo / name).read_text() == "mine"
    if name == "index":
        (zoo / name).rename(zoo.parent / name)
        remove(zoo, "a")
        assert list(open_zoo(zoo).record.tasks) == ["b"]


def test_a_folder_that_cannot_be_written_is_named(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def refused(self: Path, target: Path) -> Path:
        if target.parent.name == "tasks":
            raise PermissionError(errno.EACCES, "Permission denied", str(self), None, str(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refused)

    def add() -> None:
        with zoo_writer(zoo) as writer:
            stored(writer, "c", b"c")

    assert message(InputError, add) == f"{zoo / 'tasks'}: cannot be written: Permission denied"


def test_a_task_file_that_is_a_link_is_left_where_the_task_is_removed(zoo: Path) -> None:
    file = open_zoo(zoo).task_file("a")
    target = file.rename(zoo.parent / "a.fsw")
    file.symlink_to(target)
    remove(zoo, "a")
    assert file.is_symlink()
    assert target.read_bytes() == b"a"


def test_a_zoo_given_by_a_link_is_changed_where_it_lies(zoo: Path) -> None:
    (zoo.parent / "link").symlink_to(zoo)
    remove(zoo.parent / "link", "a")
    assert list(open_zoo(zoo).record.tasks) == ["b"]


@pytest.mark.parametrize("folders", [False, True])
def test_a_zoo_in_the_cache_of_the_hub_is_read(zoo: Path, folders: bool) -> None:
    """The cache holds a link to a blob for each file."""
    blobs, snapshot = zoo.parent / "blobs", zoo.parent / "snapshots" / "0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    if folders:
        shutil.move(zoo / "tasks", blobs / "tasks")
        (snapshot / "tasks").symlink_to("../../blobs/tasks")
    for number, file in enumerate(path for path in sorted(zoo.rglob("*")) if path.is_file()):
        blob = shutil.move(file, blobs / str(number))
        link = snapshot / file.relative_to(zoo)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    found = open_zoo(snapshot)
    assert [found.task_file(task).read_bytes() for task in found] == [b"a", b"b"]


# Deleting


def test_only_files_of_flexswitch_that_zoo_json_does_not_name_are_deleted(zoo: Path) -> None:
    tasks, index = zoo / "tasks", zoo / "index"
    with zoo_writer(zoo) as writer:  # as a killed writer leaves them
        for folder in ("tasks", "index"):
            file = writer.put(folder, "exemplars", lambda path: path.write_bytes(b"c"))  # type: ignore[arg-type]
            shutil.copy(zoo / file.file, zoo.parent / folder)
    name = Path(file.file).name.removesuffix(".safetensors")
    assert not index.exists()
    index.mkdir()
    shutil.copy(zoo.parent / "tasks", tasks / f"{name}.fsw")
    shutil.copy(zoo.parent / "index", index / f"{name}.safetensors")
    kept = [tasks / "mine.fsw", tasks / f"x.{16 * '0'}.fsw", tasks / f"{name}.fsw.bak", index / "notes.txt"]
    for path in kept:
        path.write_bytes(b"c")
    (tasks / f"x.{16 * '1'}.fsw").symlink_to(kept[0])
    (tasks / f"x.{16 * '2'}.fsw").mkdir()
    with zoo_writer(zoo):
        pass
    assert not (tasks / f"{name}.fsw").exists()
    assert not (index / f"{name}.safetensors").exists()
    assert all(path.read_bytes() == b"c" for path in kept)
    assert (tasks / f"x.{16 * '1'}.fsw").is_symlink()
    assert (tasks / f"x.{16 * '2'}.fsw").is_dir()
    assert len(open_zoo(zoo).record.tasks) == 2


def test_nothing_is_deleted_where_zoo_json_cannot_be_read(zoo: Path) -> None:
    before = files_below(zoo)
    (zoo / "zoo.json").write_text("{")
    with zoo_writer(zoo):
        pass
    assert files_below(zoo) == before


def test_a_change_that_fails_leaves_the_zoo_as_it_was(zoo: Path) -> None:
    before = files_below(zoo)
    with zoo_writer(zoo) as writer:
        stored(writer, "c", b"c")  # and no commit
    assert files_below(zoo) == before


def test_a_new_zoo_replaces_an_old_one_only_in_what_flexswitch_wrote(zoo: Path) -> None:
    (zoo / "README.md").write_text("mine")
    with new_zoo_writer(zoo, overwrite=True) as writer:
        writer.commit(record(c=stored(writer, "c", b"c")))
    file = open_zoo(zoo).record.tasks["c"].file
    assert files_below(zoo) == ["README.md", "tasks", file, "zoo.json"]


def test_a_file_named_by_zoo_json_never_changes(zoo: Path) -> None:
    old = open_zoo(zoo).task_file("a")
    with old.open("rb") as held, zoo_writer(zoo) as writer:
        new = stored(writer, "a", b"another")
        assert old.read_bytes() == b"a"
        writer.commit(record(**open_zoo(zoo).record.tasks | {"a": new}))
        assert old.read_bytes() == b"a"  # until the writer ends
        assert held.read() == b"a"
    assert not old.exists()
    assert open_zoo(zoo).task_file("a").read_bytes() == b"another"


def test_writing_the_same_zoo_again_changes_no_byte(zoo: Path) -> None:
    before = {file: file.read_bytes() for file in zoo.rglob("*") if file.is_file()}
    write_zoo(zoo, open_zoo(zoo).record)
    assert {file: file.read_bytes() for file in zoo.rglob("*") if file.is_file()} == before
