"""Working folders of killed processes are removed by the next writer of the same output, and no others."""

import errno
import os
import re
from pathlib import Path

import pytest
from support.commands import files_below
from support.killed_writers import kill, start_writer

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.atomic import atomic_directory, atomic_file
from flexswitch.codecs.format.working_folder import set_aside, working_folder


def test_the_next_writer_of_an_output_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    path, other = tmp_path / "out.fsw", tmp_path / "out2.fsw"
    (live, held), (dead, left) = start_writer(path), start_writer(path)
    kill(dead)
    assert (left / "half").exists()
    with atomic_file(other, overwrite=False):
        assert left.exists()
    with atomic_file(path, overwrite=False):
        assert not left.exists()
    assert (held / "half").read_bytes() == b"half"
    kill(live)
    with working_folder(path):
        assert not held.exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.fsw", "out2.fsw"]


def test_an_old_output_that_a_killed_writer_set_aside_returns(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_bytes(b"old")
    process, _ = start_writer(path)
    kill(process)
    assert not path.exists()
    with working_folder(path):
        assert (path / "old").read_bytes() == b"old"
    assert files_below(tmp_path) == ["model", "model/old"]


def test_an_old_output_does_not_return_over_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    process, _ = start_writer(path)
    with atomic_directory(path, overwrite=False) as partial:
        (partial / "new").touch()
    kill(process)
    with working_folder(path):
        pass
    assert files_below(tmp_path) == ["model", "model/new"]


def test_an_old_output_that_is_set_aside_in_vain_returns_at_once(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    with working_folder(path) as folder:
        set_aside(path, folder)
    assert files_below(tmp_path) == ["model"]


@pytest.mark.parametrize(
    "name",
    [
        ".out.fsw.partial",
        ".out.fsw.00000000-11111111.partial",  # another host's
        ".out.fsw.{host}-1111111.partial",
        "out.fsw.{host}-11111111.partial",
        ".outtfsw.{host}-11111111.partial",
    ],
)
def test_a_folder_with_another_name_stays(tmp_path: Path, name: str) -> None:
    path = tmp_path / "out.fsw"
    with working_folder(path) as folder:
        host = folder.name.split(".")[-2].split("-")[0]
    kept = tmp_path / name.format(host=host)
    kept.mkdir()
    (kept / "file").touch()
    with working_folder(path):
        pass
    assert (kept / "file").exists()


def test_nothing_is_removed_through_a_link(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "out.fsw", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    with working_folder(path) as folder:
        host = folder.name.split(".")[-2].split("-")[0]
    link = tmp_path / f".out.fsw.{host}-11111111.partial"
    link.symlink_to(elsewhere)
    inside = tmp_path / f".out.fsw.{host}-22222222.partial"
    inside.mkdir()
    (inside / "half").symlink_to(elsewhere)
    with working_folder(path):
        pass
    assert os.path.lexists(link)
    assert not inside.exists()
    assert files_below(elsewhere) == ["file"]


def test_a_folder_in_which_none_can_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in /proc, which says that the new folder does not exist. It was tried for ever."""
    tries: list[Path] = []

    def mkdir(path: Path) -> None:
        tries.append(path)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) if len(tries) < 9 else AssertionError

    monkeypatch.setattr(Path, "mkdir", mkdir)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=f"^{re.escape(str(out))}: cannot be written: "), working_folder(out):
        pass
    assert len(tries) == 1
