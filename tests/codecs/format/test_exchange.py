"""Two names are exchanged in one step."""

import sys
from pathlib import Path

import pytest

from flexswitch.codecs.format.exchange import exchange


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="the system has no such step")
def test_two_folders_and_a_link_are_exchanged(tmp_path: Path) -> None:
    one, other, link = tmp_path / "one", tmp_path / "other", tmp_path / "link"
    for folder in (one, other):
        folder.mkdir()
        (folder / folder.name).touch()
    assert exchange(one, other)
    assert [file.name for file in one.iterdir()] == ["other"]
    link.symlink_to("other")
    assert exchange(one, link)
    assert one.is_symlink()
    assert [file.name for file in link.iterdir()] == ["other"]


def test_nothing_is_exchanged_with_a_name_that_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    assert not exchange(tmp_path / "one", tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
