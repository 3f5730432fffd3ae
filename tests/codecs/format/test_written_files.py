"""Tests that --overwrite replaces only a folder whose files are all as flexswitch wrote them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.written_files import LIST_FILE, foreign_file, inside, list_files

WEIGHTS = b"weights" * 200_000
NOT_OURS = "holds {}, which flexswitch did not write"
CHANGES: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "nothing": (lambda folder: None, None),
    "a file deleted": (lambda folder: (folder / "config.json").unlink(), None),
    "a folder deleted": (lambda folder: shutil.rmtree(folder / "1_Dense"), None),
    "notes": (lambda folder: (folder / "notes.txt").write_text("mine"), NOT_OURS.format("notes.txt")),
    "results": (lambda folder: (folder / "results.json").write_text("{}"), NOT_OURS.format("results.json")),
    "a hidden file": (lambda folder: (folder / ".env").touch(), NOT_OURS.format(".env")),
    "an empty folder": (lambda folder: (folder / "logs").mkdir(), NOT_OURS.format("logs")),
    "a file in a module": (
        lambda folder: (folder / "1_Dense" / "more.json").touch(),
        NOT_OURS.format("1_Dense/more.json"),
    ),
    "a link to a folder": (
        lambda folder: (folder / "link").symlink_to("1_Dense"),
        NOT_OURS.format("link"),
    ),
    "a file made a link": (
        lambda folder: (
            (folder / "config.json").rename(folder.parent / "x")
            and (folder / "config.json").symlink_to(folder.parent / "x")
        ),
        NOT_OURS.format("config.json"),
    ),
    "an edited file": (
        lambda folder: (folder / "config.json").write_text("{}\n\n"),
        "holds config.json, which was changed after flexswitch wrote it",
    ),
    "a file edited at its end": (
        lambda folder: (folder / "1_Dense" / "model.safetensors").write_bytes(WEIGHTS[:-1] + b"S"),
        "holds 1_Dense/model.safetensors, which was changed after flexswitch wrote it",
    ),
    "a file edited in its first MiB": (
        lambda folder: (folder / "1_Dense" / "model.safetensors").write_bytes(b"W" + WEIGHTS[1:]),
        "holds 1_Dense/model.safetensors, which was changed after flexswitch wrote it",
    ),
    "a file of a few bytes edited to one of the same size": (
        lambda folder: (folder / "config.json").write_text("[]\n"),
        "holds config.json, which was changed after flexswitch wrote it",
    ),
    "no list": (
        lambda folder: (folder / LIST_FILE).unlink(),
        f"holds no {LIST_FILE} that lists what flexswitch wrote",
    ),
    "a broken list": (
        lambda folder: (folder / LIST_FILE).write_bytes(b"\xff"),
        f"holds no {LIST_FILE} that lists what flexswitch wrote",
    ),
    "another list": (
        lambda folder: (folder / LIST_FILE).write_text('{"files": []}'),
        f"holds no {LIST_FILE} that lists what flexswitch wrote",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_only_a_folder_of_unchanged_own_files_may_be_replaced(tmp_path: Path, case: str) -> None:
    folder = tmp_path / "model"
    (folder / "1_Dense").mkdir(parents=True)
    (folder / "config.json").write_text("{}\n")
    (folder / "1_Dense" / "model.safetensors").write_bytes(WEIGHTS)
    list_files(folder)
    change, expected = CHANGES[case]
    change(folder)
    assert foreign_file(folder) == expected


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "link/x"])
def test_a_file_outside_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    with pytest.raises(InputError) as caught:
        inside(tmp_path / "out", name)
    assert str(caught.value) == f"{tmp_path / 'out'}: the file '{name}' would be written outside of it"
    assert inside(tmp_path / "out", "1_Dense/x") == tmp_path / "out" / "1_Dense" / "x"
