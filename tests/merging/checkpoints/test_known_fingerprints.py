"""The fingerprint of an unchanged base is remembered, and a cache of any kind does no harm."""

import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import MemoryCheckpoint, State, message, save_model

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints import known_fingerprints
from flexswitch.merging.checkpoints.fingerprint import fingerprint
from flexswitch.merging.checkpoints.hashing import HashingCheckpoint, open_base
from flexswitch.merging.checkpoints.opening import open_checkpoint

BASE: State = {"a": torch.arange(2000.0), "b": torch.ones(3, 4)}
OTHER: State = BASE | {"a": torch.arange(2000.0) + (torch.arange(2000) == 1234)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache, in a process that knows nothing and takes files of any age as settled."""
    monkeypatch.setenv("FLEXSWITCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(known_fingerprints, "SETTLED_SECONDS", -1.0)
    monkeypatch.setattr(known_fingerprints, "_known", {})
    return tmp_path / "cache" / "bases"


def written(folder: Path, state: State) -> Path:
    save_file(state, folder / "base.safetensors")
    return folder / "base.safetensors"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process know what a new one does: what the cache holds."""
    monkeypatch.setattr(known_fingerprints, "_known", {})


def test_an_unchanged_base_is_hashed_once_for_all_processes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, BASE)
    expected = fingerprint(MemoryCheckpoint(BASE))
    assert open_base(path).known_fingerprint is None
    assert fingerprint(open_base(path)) == expected
    forget(monkeypatch)
    again = open_base(path)
    assert again.known_fingerprint == again.fingerprint() == expected
    assert again.digests == {}
    assert [file.read_text() for file in cache.iterdir()] == [expected]


def same_size_and_time(path: Path) -> None:
    """Writes another base over a file, of the same size and with its old modification time."""
    stat = path.stat()
    path.write_bytes(written(path.parent, OTHER).read_bytes())
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def replaced(path: Path) -> None:
    """Renames another base to a file's name, with the file's modification time."""
    stat = path.stat()
    (path.parent / "other").mkdir()
    other = written(path.parent / "other", OTHER)
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)


def longer(path: Path) -> None:
    written(path.parent, OTHER | {"c": torch.ones(1)})


@pytest.mark.parametrize("change", [same_size_and_time, replaced, longer])
def test_a_base_that_changed_is_hashed_again(tmp_path: Path, cache: Path, change) -> None:
    path = written(tmp_path, BASE)
    before = fingerprint(open_base(path))
    time.sleep(0.02)  # longer than a tick of the file system's clock
    change(path)
    assert open_base(path).known_fingerprint is None
    assert (
        fingerprint(open_base(path)) == fingerprint(HashingCheckpoint(open_checkpoint(path), False)) != before
    )


def test_the_config_counts_since_it_says_what_is_tied(tmp_path: Path, cache: Path) -> None:
    table = torch.ones(3, 2)
    state = {"model.embed_tokens.weight": table, "lm_head.weight": table.clone()}
    tied = fingerprint(open_base(save_model(tmp_path / "base", state, {})))
    (tmp_path / "base" / "config.json").write_text('{"tie_word_embeddings": false}')
    assert open_base(tmp_path / "base").known_fingerprint is None
    assert fingerprint(open_base(tmp_path / "base")) != tied


def test_a_file_that_is_younger_than_two_seconds_is_not_remembered(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_fingerprints, "SETTLED_SECONDS", 2.0)
    path = written(tmp_path, BASE)
    os.utime(path, (1, 1))  # its change time stays young
    fingerprint(open_base(path))
    assert not cache.exists()
    assert open_base(path).known_fingerprint is None


@pytest.mark.parametrize("is_known", [False, True])
def test_a_base_that_changes_while_it_is_read_is_refused(tmp_path: Path, cache: Path, is_known: bool) -> None:
    path = written(tmp_path, BASE)
    if is_known:
        fingerprint(open_base(path))
    base = open_base(path)
    assert (base.known_fingerprint is not None) == is_known
    base.read("a")
    time.sleep(0.02)
    same_size_and_time(path)
    assert message(InputError, base.fingerprint) == (
        f"{path}: its files changed while they were read; run the command again"
    )


def empty(file: Path) -> None:
    file.write_text("")


def garbage(file: Path) -> None:
    file.write_bytes(os.urandom(64))


def cut(file: Path) -> None:
    file.write_text(file.read_text()[:63])


def longer_than_a_fingerprint(file: Path) -> None:
    file.write_text(file.read_text() + "0")


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def link_to_endless_zeros(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def dead_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def file_in_place_of_the_folder(file: Path) -> None:
    shutil.rmtree(file.parent)
    file.parent.write_text("no folder")


def read_only(file: Path) -> None:
    file.unlink()
    file.parent.chmod(0o500)


DAMAGES = [empty, garbage, cut, longer_than_a_fingerprint, folder, pipe, link_to_endless_zeros, dead_link,
           file_in_place_of_the_folder, read_only]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_cache_that_is_broken_is_ignored(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, damage
) -> None:
    path = written(tmp_path, BASE)
    expected = fingerprint(open_base(path))
    (file,) = cache.iterdir()
    damage(file)
    forget(monkeypatch)
    base = open_base(path)
    assert base.known_fingerprint is None
    assert base.fingerprint() == expected
    if cache.is_dir():
        cache.chmod(0o700)


def test_what_another_user_put_into_the_cache_is_ignored(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, BASE)
    fingerprint(open_base(path))
    forget(monkeypatch)
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    assert open_base(path).known_fingerprint is None


@pytest.mark.parametrize("place", ["/proc/nowhere", "/dev/null/cache", "\udcff" * 300])
def test_a_cache_that_cannot_exist_is_no_error(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("FLEXSWITCH_CACHE", place)
    path = written(tmp_path, BASE)
    assert fingerprint(open_base(path)) == fingerprint(MemoryCheckpoint(BASE))


def test_the_cache_follows_its_variables_and_keeps_the_newest(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLEXSWITCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(known_fingerprints, "MOST_REMEMBERED", 3)
    path = written(tmp_path, BASE)
    for number in range(6):
        os.utime(path, (number, number))
        fingerprint(open_base(path))
        time.sleep(0.01)
    kept = list((tmp_path / "xdg" / "flexswitch" / "bases").iterdir())
    assert len(kept) == 3
    forget(monkeypatch)
    assert open_base(path).known_fingerprint == fingerprint(MemoryCheckpoint(BASE))
