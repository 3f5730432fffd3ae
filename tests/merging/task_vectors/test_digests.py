"""The base's fingerprint comes from reading each of its tensors once, beside the task vector."""

import os
from collections import Counter, deque
from pathlib import Path

import pytest
import torch
from support.checkpoints import MemoryCheckpoint, State, compressed, file_pair, memory_pair, use_small_blocks
from torch import Tensor

from flexswitch.merging.checkpoints.fingerprint import fingerprint, forget_digests, identify
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.checkpoints.safetensors_checkpoint import SafetensorsCheckpoint
from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.task_vector import TaskVector

BASE: State = {
    "a": torch.linspace(-1, 1, 3000).reshape(60, 50),
    "b": torch.linspace(0, 9, 2000).to(torch.bfloat16),
    "empty": torch.empty(0, 4),
    "n": torch.arange(2500),
    "scale": torch.tensor(2.5),
}
TUNED: State = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in BASE.items()}
UNITS = ["a", "b", "empty"]
SLICES = 16 * 64  # what the sample reads of a tensor of more entries


@pytest.fixture(autouse=True)
def _nothing_is_known() -> None:
    forget_digests()


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the entries that are read of each tensor of base.safetensors."""
    counted: Counter[str] = Counter()
    read = SafetensorsCheckpoint.read

    def counting(self: SafetensorsCheckpoint, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        found = read(self, name, start, stop)
        if self.files[0].name == "base.safetensors":
            counted[name] += len(found)
        return found

    monkeypatch.setattr(SafetensorsCheckpoint, "read", counting)
    return counted


def opened(folder: Path) -> CheckpointPair:
    base, tuned = (open_checkpoint(str(folder / f"{stem}.safetensors")) for stem in ("base", "finetuned"))
    return CheckpointPair(base, tuned)


def read_units(vector: TaskVector) -> None:
    for unit in vector.tensors:
        deque(vector.blocks(unit), maxlen=0)


@pytest.mark.parametrize("small_blocks", [False, True])
def test_tensors_that_were_read_are_not_read_again_for_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: Counter[str], small_blocks: bool
) -> None:
    if small_blocks:
        use_small_blocks(monkeypatch, 64)
    pair = file_pair(tmp_path, BASE, TUNED)
    assert list(pair.tensors) == UNITS
    read_units(pair)
    assert +entries == {"a": 3000, "b": 2000}
    assert list(pair.digests) == UNITS
    entries.clear()
    assert pair.identity() == identify(MemoryCheckpoint(BASE))
    assert +entries == {"a": SLICES, "b": SLICES, "n": 2500 + SLICES, "scale": 2}
    entries.clear()
    assert fingerprint(pair.base, pair.digests) == fingerprint(MemoryCheckpoint(BASE))
    assert +entries == {}


def test_an_identity_told_first_reads_everything_once(tmp_path: Path, entries: Counter[str]) -> None:
    pair = file_pair(tmp_path, BASE, TUNED)
    expected = pair.identity()
    everything = {"a": 3000 + SLICES, "b": 2000 + SLICES, "n": 2500 + SLICES, "scale": 2}
    assert +entries == everything
    entries.clear()
    assert pair.identity() == expected == identify(MemoryCheckpoint(BASE))
    assert +entries == {"a": SLICES, "b": SLICES, "n": SLICES, "scale": 1}


def test_a_tensor_read_in_part_counts_as_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch, 64)
    pair = file_pair(tmp_path, BASE, TUNED)
    blocks = pair.blocks("a")
    next(blocks)
    blocks.close()  # type: ignore[attr-defined]
    assert pair.digests == {}
    deque(pair.blocks("b"), maxlen=0)
    assert list(pair.digests) == ["b"]
    assert pair.identity() == identify(MemoryCheckpoint(BASE))


def test_reading_a_tensor_twice_or_its_corrections_changes_no_digest(tmp_path: Path) -> None:
    pair = file_pair(tmp_path, BASE, TUNED)
    read_units(pair)
    before = dict(pair.digests)
    read_units(pair)
    for unit in pair.tensors:
        pair.exact(unit)
    assert pair.digests == before
    forget_digests()
    other = opened(tmp_path)
    for unit in other.tensors:
        other.exact(unit)
    assert other.digests == before


def test_digests_of_another_base_give_another_fingerprint() -> None:
    digests: dict[str, str] = {}
    whole = fingerprint(MemoryCheckpoint(BASE), digests)
    assert digests.keys() == BASE.keys()
    assert fingerprint(MemoryCheckpoint(BASE), dict(digests)) == whole == fingerprint(MemoryCheckpoint(BASE))
    assert fingerprint(MemoryCheckpoint(BASE), digests | {"n": "00" * 32}) != whole


def test_rows_that_only_the_base_has_are_in_its_fingerprint(tmp_path: Path) -> None:
    tuned = TUNED | {"a": TUNED["a"][:40]}
    pair = file_pair(tmp_path, BASE, tuned, on_resize="rows")
    read_units(pair)
    assert pair.identity().fingerprint == fingerprint(MemoryCheckpoint(BASE))


def test_an_artifact_names_the_base_that_a_fresh_look_finds(tmp_path: Path) -> None:
    artifact = compressed(file_pair(tmp_path, BASE, TUNED), tmp_path / "t.fsw")
    fresh = open_checkpoint(str(tmp_path / "base.safetensors"))
    assert artifact.header.base == identify(fresh)
    assert artifact.header.base.fingerprint == fingerprint(fresh)


# --- several tasks of one base ----------------------------------------------------------------------------


def test_a_base_is_hashed_once_for_all_its_tasks(tmp_path: Path, entries: Counter[str]) -> None:
    expected = file_pair(tmp_path, BASE, TUNED).identity()
    entries.clear()
    again = opened(tmp_path)
    assert again.digests.keys() == BASE.keys()
    assert again.identity() == expected
    assert +entries == {"a": SLICES, "b": SLICES, "n": SLICES, "scale": 1}


def test_a_base_that_changed_is_hashed_anew(tmp_path: Path) -> None:
    before = file_pair(tmp_path, BASE, TUNED).identity()
    path = tmp_path / "base.safetensors"
    stat = path.stat()
    changed = BASE | {"n": BASE["n"] + 1}
    file_pair(tmp_path, changed, TUNED)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    pair = opened(tmp_path)
    assert pair.digests == {}
    assert pair.identity().fingerprint == fingerprint(MemoryCheckpoint(changed)) != before.fingerprint


def test_bases_that_are_in_no_file_share_nothing() -> None:
    one = memory_pair(BASE, TUNED)
    read_units(one)
    other = memory_pair(BASE | {"a": BASE["a"] * 2}, TUNED)
    assert other.identity().fingerprint == fingerprint(MemoryCheckpoint(BASE | {"a": BASE["a"] * 2}))
