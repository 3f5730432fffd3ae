"""Tests that an output replaces no link, and nothing that others make while it is written."""

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.atomic import atomic_directory, atomic_file, check_output
from flexswitch.codecs.format.exchange import exchange
from flexswitch.codecs.format.written_files import foreign_file, list_files

Place = Callable[..., AbstractContextManager[Path]]
Exchange = Callable[[Path, Path], bool]
# The second one stands for a system that cannot exchange two names.
EXCHANGES = pytest.mark.parametrize("exchange", [exchange, lambda one, other: False])


def names(folder: Path) -> set[str]:
    """Returns everything below a folder, temporary files too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("place", [atomic_file, atomic_directory])
@pytest.mark.parametrize("target", ["folder", "file", "nowhere"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_that_is_a_link_is_refused(
    tmp_path: Path, place: Place, target: str, overwrite: bool
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"old")
    path, before = tmp_path / "link", {"folder", "file", "link"}
    path.symlink_to(target)
    for attempt in (
        lambda: place(path, overwrite=overwrite).__enter__(),
        lambda: check_output(path, overwrite),
    ):
        with pytest.raises(InputError) as caught:
            attempt()
        assert str(caught.value) == (
            f"{path}: is a link, and flexswitch writes nothing through links; give another output, or the "
            "path that it leads to"
        )
    assert names(tmp_path) == before
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_another_process_makes_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    def no_link(*arguments: object) -> None:
        raise PermissionError(errno.EPERM, "a file system without hard links")

    if not has_links:
        monkeypatch.setattr(os, "link", no_link)
    for taken in (True, False):
        path = tmp_path / f"out{taken}"

        def write(path: Path = path, taken: bool = taken) -> None:
            with atomic_file(path, overwrite=False) as partial:
                partial.write_bytes(b"mine")
                if taken:
                    path.write_bytes(b"theirs")

        if taken:
            with pytest.raises(InputError) as caught:
                write()
            assert str(caught.value) == (
                f"{path}: another process has made it meanwhile; give another output, or --overwrite to "
                "replace it"
            )
        else:
            write()
        assert path.read_bytes() == (b"theirs" if taken else b"mine")
        assert path.stat().st_nlink == 1
    assert names(tmp_path) == {"outTrue", "outFalse"}


@EXCHANGES
def test_a_file_that_is_put_into_a_directory_meanwhile_keeps_it_from_being_replaced(
    tmp_path: Path, exchange: Exchange
) -> None:
    path = tmp_path / "model"
    with atomic_directory(path, overwrite=True) as partial:
        (partial / "old").write_bytes(b"old")
        list_files(partial)

    def replace(*added: str) -> None:
        with atomic_directory(path, overwrite=True, refusal=foreign_file, exchange=exchange) as partial:
            (partial / "new").write_bytes(b"new")
            list_files(partial)
            for name in added:
                (path / name).write_bytes(b"mine")

    with pytest.raises(InputError) as caught:
        replace("notes.txt")
    assert str(caught.value) == (
        f"{path}: holds notes.txt, which flexswitch did not write, so --overwrite does not replace it; give "
        "another output"
    )
    assert names(tmp_path) == {"model", "model/flexswitch.json", "model/notes.txt", "model/old"}
    (path / "notes.txt").unlink()
    replace()
    assert names(tmp_path) == {"model", "model/flexswitch.json", "model/new"}
