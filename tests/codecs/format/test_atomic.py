"""Outputs appear whole or not at all."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.atomic import atomic_directory, atomic_file, check_output, check_space
from flexswitch.codecs.format.exchange import exchange

Place = Callable[..., AbstractContextManager[Path]]
Exchange = Callable[[Path, Path], bool]


def names(folder: Path) -> set[str]:
    """Returns everything below a folder, temporary files too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@contextmanager
def umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.fsw"
    with atomic_file(path, overwrite=False) as partial:
        partial.write_bytes(b"half")
        assert not path.exists()
        assert partial.parent.parent == tmp_path
        partial.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"
    assert names(tmp_path) == {"out.fsw"}


def test_a_directory_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "zoo"
    with atomic_directory(path, overwrite=False) as partial:
        (partial / "tasks").mkdir()
        (partial / "tasks" / "a.fsw").write_bytes(b"a")
        assert not path.exists()
    assert names(tmp_path) == {"zoo", "zoo/tasks", "zoo/tasks/a.fsw"}


@pytest.mark.parametrize("error", [ValueError, InputError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("exists", [False, True])
def test_nothing_is_left_of_a_file_that_failed(
    tmp_path: Path, error: type[BaseException], exists: bool
) -> None:
    path = tmp_path / "out.fsw"
    if exists:
        path.write_bytes(b"old")

    def fail_halfway() -> None:
        with atomic_file(path, overwrite=exists) as partial:
            partial.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail_halfway()
    assert names(tmp_path) == ({"out.fsw"} if exists else set())
    assert not exists or path.read_bytes() == b"old"


@pytest.mark.parametrize("error", [ValueError, InputError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("exists", [False, True])
def test_nothing_is_left_of_a_directory_that_failed(
    tmp_path: Path, error: type[BaseException], exists: bool
) -> None:
    path = tmp_path / "zoo"
    if exists:
        path.mkdir()
        (path / "old").write_bytes(b"old")

    def fail_halfway() -> None:
        with atomic_directory(path, overwrite=exists) as partial:
            (partial / "new").write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail_halfway()
    assert names(tmp_path) == ({"zoo", "zoo/old"} if exists else set())


def test_an_existing_output_is_refused(tmp_path: Path) -> None:
    file, folder = tmp_path / "out.fsw", tmp_path / "zoo"
    file.write_bytes(b"old")
    folder.mkdir()
    for path, place in ((file, atomic_file), (folder, atomic_directory)):
        with pytest.raises(InputError) as caught, place(path, overwrite=False):
            pytest.fail("the output was given")
        expected = f"{path}: exists already; give another output, or --overwrite to replace it"
        assert str(caught.value) == expected
    assert file.read_bytes() == b"old"
    assert names(tmp_path) == {"out.fsw", "zoo"}


def test_overwriting_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "out.fsw"
    path.write_bytes(b"a longer old file")
    with atomic_file(path, overwrite=True) as partial:
        partial.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == {"out.fsw"}


def in_two_steps(one: Path, other: Path) -> bool:
    """Stands for `exchange` on a system that has none."""
    return False


EXCHANGES = pytest.mark.parametrize("exchange", [exchange, in_two_steps])


@EXCHANGES
def test_overwriting_replaces_a_directory_whole(tmp_path: Path, exchange: Exchange) -> None:
    path = tmp_path / "zoo"
    (path / "tasks").mkdir(parents=True)
    (path / "tasks" / "old.fsw").write_bytes(b"old")
    with atomic_directory(path, overwrite=True, exchange=exchange) as partial:
        (partial / "new").write_bytes(b"new")
    assert names(tmp_path) == {"zoo", "zoo/new"}


@pytest.mark.parametrize("failing", [1, 2])
def test_the_old_directory_returns_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    path = tmp_path / "zoo"
    path.mkdir()
    (path / "old").write_bytes(b"old")
    calls, rename = [], Path.rename

    def fail_once(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == failing:
            raise PermissionError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with (
        pytest.raises(PermissionError),
        atomic_directory(path, overwrite=True, exchange=in_two_steps) as partial,
    ):
        (partial / "new").write_bytes(b"new")
    assert names(tmp_path) == {"zoo", "zoo/old"}


def test_the_old_directory_is_not_lost_where_it_cannot_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "zoo"
    path.mkdir()
    (path / "old").write_bytes(b"old")
    calls, rename = [], Path.rename

    def fail_from_the_second(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) > 1:
            raise PermissionError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_from_the_second)
    with (
        pytest.raises(PermissionError),
        atomic_directory(path, overwrite=True, exchange=in_two_steps) as partial,
    ):
        (partial / "new").write_bytes(b"new")
    assert {file.read_bytes() for file in tmp_path.rglob("old")} == {b"old"}
    monkeypatch.undo()
    with pytest.raises(KeyError), atomic_directory(path, overwrite=True):
        raise KeyError
    assert names(tmp_path) == {"zoo", "zoo/old"}


def test_a_directory_that_another_process_makes_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "zoo"

    def write() -> None:
        with atomic_directory(path, overwrite=False) as partial:
            (partial / "mine").write_bytes(b"mine")
            path.mkdir()
            (path / "theirs").write_bytes(b"theirs")

    with pytest.raises(InputError) as caught:
        write()
    assert str(caught.value) == (
        f"{path}: another process has made it meanwhile; give another output, or --overwrite to replace it"
    )
    assert names(tmp_path) == {"zoo", "zoo/theirs"}


def test_a_directory_is_not_replaced_where_the_caller_refuses(tmp_path: Path) -> None:
    path = tmp_path / "zoo"
    path.mkdir()
    with atomic_directory(path, overwrite=True, refusal=lambda folder: "is full"):
        pass  # an empty one is replaced in any case
    (path / "photo").write_bytes(b"old")
    with (
        pytest.raises(InputError) as caught,
        atomic_directory(path, overwrite=True, refusal=lambda folder: "is full"),
    ):
        pytest.fail("the output was given")
    assert str(caught.value) == f"{path}: is full, so --overwrite does not replace it; give another output"
    assert names(tmp_path) == {"zoo", "zoo/photo"}


@pytest.mark.parametrize("place", [atomic_file, atomic_directory])
def test_an_output_in_a_missing_folder_is_refused(tmp_path: Path, place: Place) -> None:
    path = tmp_path / "missing" / "out"
    for attempt in (lambda: place(path, overwrite=True).__enter__(), lambda: check_output(path, True)):
        with pytest.raises(InputError) as caught:
            attempt()
        assert str(caught.value) == f"{path}: the folder {path.parent} does not exist; make it first"


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.fsw"
    path.mkdir()
    with pytest.raises(InputError) as caught, atomic_file(path, overwrite=True):
        pytest.fail("the output was given")
    assert str(caught.value) == f"{path}: is a folder, expected a file; choose a file name"
    assert names(tmp_path) == {"out.fsw"}


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "zoo"
    path.write_bytes(b"old")
    with pytest.raises(InputError) as caught, atomic_directory(path, overwrite=True):
        pytest.fail("the output was given")
    assert str(caught.value) == f"{path}: is a file, expected a folder; choose a folder name"
    assert names(tmp_path) == {"zoo"}


@pytest.mark.parametrize(("mask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int, file_mode: int, folder_mode: int) -> None:
    with umask(mask):
        with atomic_file(tmp_path / "out.fsw", overwrite=False) as partial:
            partial.write_bytes(b"new")
        with atomic_directory(tmp_path / "zoo", overwrite=False):
            pass
        assert os.umask(mask) == mask
    assert (tmp_path / "out.fsw").stat().st_mode & 0o777 == file_mode
    assert (tmp_path / "zoo").stat().st_mode & 0o777 == folder_mode


def test_a_disk_too_small_is_reported_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.fsw"
    asked = []

    def usage(folder: Path) -> SimpleNamespace:
        asked.append(folder)
        return SimpleNamespace(total=10**9, used=10**9 - 2048, free=2048)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    check_space(path, 2048)
    with pytest.raises(InputError) as caught:
        check_space(path, 1234567)
    assert str(caught.value) == (
        f"{path}: the output needs 1,234,567 bytes and the disk has 2,048 free; free some space or choose an "
        "output on another disk"
    )
    assert asked == [tmp_path, tmp_path]


@pytest.mark.parametrize("place", [atomic_file, atomic_directory])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_is_reported_with_the_output(tmp_path: Path, place: Place, number: int) -> None:
    path = tmp_path / "out"
    with pytest.raises(InputError) as caught, place(path, overwrite=False) as partial:
        raise OSError(number, "It is full", str(partial))
    assert str(caught.value) == f"{path}: could not be written: It is full; the partial output was removed"
    assert names(tmp_path) == set()


@pytest.mark.parametrize("place", [atomic_file, atomic_directory])
def test_another_error_of_the_system_is_passed_on(tmp_path: Path, place: Place) -> None:
    error = PermissionError(errno.EPERM, "No", "elsewhere")
    with pytest.raises(PermissionError) as caught, place(tmp_path / "out", overwrite=False):
        raise error
    assert caught.value is error
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("place", [atomic_file, atomic_directory])
def test_a_name_that_the_disk_does_not_take_is_reported(tmp_path: Path, place: Place) -> None:
    path = tmp_path / ("x" * 250)
    with pytest.raises(InputError) as caught, place(path, overwrite=False):
        pytest.fail("the output was given")
    assert str(caught.value) == f"{path}: cannot be written: File name too long"


def test_an_error_inside_a_directory_names_its_place_not_the_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "zoo"
    with pytest.raises(InputError) as caught, atomic_directory(path, overwrite=False) as partial:
        raise InputError(f"{partial / 'zoo.json'}: is wrong")
    assert str(caught.value) == f"{path / 'zoo.json'}: is wrong"


@pytest.mark.parametrize(("writer", "make"), [(atomic_file, "touch"), (atomic_directory, "mkdir")])
def test_an_interrupt_just_after_the_temporary_place_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Any, make: str
) -> None:
    original = getattr(Path, make)

    def interrupted(path: Path, **options: Any) -> None:
        original(path, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, make, interrupted)
    with pytest.raises(KeyboardInterrupt), writer(tmp_path / "out", overwrite=False):
        pytest.fail("the body was entered")
    assert list(tmp_path.iterdir()) == []
