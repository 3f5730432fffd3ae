"""The base's fingerprint is computed while its tensors are read for the task vector."""

import os
from collections import Counter, deque
from pathlib import Path

import pytest
import torch
from support.checkpoints import MemoryCheckpoint, State, compressed, file_pair, memory_pair, use_small_blocks
from torch import Tensor

from flexswitch.merging.checkpoints.fingerprint import fingerprint, identify
from flexswitch.merging.checkpoints.hashing import HashingCheckpoint, forget_digests
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.checkpoints.safetensors_checkpoint import SafetensorsCheckpoint
from flexswitch.merging.commands.compress import compress
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
TENSORS = ["a", "b", "empty"]
SLICES = 16 * 64  # what the quick fingerprint reads of a larger tensor


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
    return CheckpointPair(HashingCheckpoint(base), tuned)


def read_tensors(vector: TaskVector) -> None:
    for name in vector.tensors:
        deque(vector.blocks(name), maxlen=0)


@pytest.mark.parametrize("small_blocks", [False, True])
def test_tensors_that_were_read_are_not_read_again_for_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: Counter[str], small_blocks: bool
) -> None:
    if small_blocks:
        use_small_blocks(monkeypatch, 64)
    pair = file_pair(tmp_path, BASE, TUNED)
    assert list(pair.tensors) == TENSORS
    read_tensors(pair)
    assert +entries == {"a": 3000, "b": 2000}
    assert list(pair.hints.base_digests) == ["a", "b"]  # the empty one needs no read
    entries.clear()
    assert pair.identity() == identify(MemoryCheckpoint(BASE))
    assert +entries == {"a": SLICES, "b": SLICES, "n": 2500 + SLICES, "scale": 2}
    entries.clear()
    assert fingerprint(pair.base) == fingerprint(MemoryCheckpoint(BASE))
    assert +entries == {}


def test_compress_reads_every_tensor_of_the_base_once(tmp_path: Path, entries: Counter[str]) -> None:
    file_pair(tmp_path, BASE, TUNED)
    base, tuned = (tmp_path / f"{stem}.safetensors" for stem in ("base", "finetuned"))
    compress(tuned, tmp_path / "t.fsw", base=base)
    assert +entries == {"a": 3000 + SLICES, "b": 2000 + SLICES, "n": 2500 + SLICES, "scale": 2}


def test_identity_before_any_block_reads_everything_once(tmp_path: Path, entries: Counter[str]) -> None:
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
    assert pair.hints.base_digests == {}
    deque(pair.blocks("b"), maxlen=0)
    assert list(pair.hints.base_digests) == ["b"]
    assert pair.identity() == identify(MemoryCheckpoint(BASE))


def test_reading_a_tensor_twice_or_its_corrections_changes_no_digest(tmp_path: Path) -> None:
    pair = file_pair(tmp_path, BASE, TUNED)
    read_tensors(pair)
    before = dict(pair.hints.base_digests)
    read_tensors(pair)
    for name in pair.tensors:
        pair.exact(name)
    assert pair.hints.base_digests == before
    forget_digests()
    other = opened(tmp_path)
    for name in other.tensors:
        other.exact(name)
    assert other.hints.base_digests == before


def test_a_digest_that_is_known_is_not_computed_again() -> None:
    digests: dict[str, str] = {}
    whole = fingerprint(HashingCheckpoint(MemoryCheckpoint(BASE), digests))
    assert digests.keys() == BASE.keys()
    again = fingerprint(HashingCheckpoint(MemoryCheckpoint(BASE), dict(digests)))
    assert again == whole == fingerprint(MemoryCheckpoint(BASE))
    digests["n"] = "00" * 32
    assert fingerprint(HashingCheckpoint(MemoryCheckpoint(BASE), digests)) != whole


def test_only_reads_from_the_first_entry_to_the_last_give_a_digest() -> None:
    base = HashingCheckpoint(MemoryCheckpoint(BASE))
    for start, stop in ((0, 1000), (2000, 3000), (1000, 2000), (2000, 3000)):
        base.read("a", start, stop)
    assert base.digests == {}
    for start, stop in ((0, 10), (0, 1000), (1000, 2000), (2000, 3000)):
        base.read("a", start, stop)
    assert base.digest("a") == base.digests["a"] == HashingCheckpoint(MemoryCheckpoint(BASE)).digest("a")


def test_a_pair_with_a_plain_base_hashes_nothing_while_it_reads(tmp_path: Path) -> None:
    hashing = file_pair(tmp_path, BASE, TUNED)
    base, tuned = (open_checkpoint(str(tmp_path / f"{stem}.safetensors")) for stem in ("base", "finetuned"))
    plain = CheckpointPair(base, tuned)
    read_tensors(plain)
    assert plain.hints.base_digests == hashing.hints.base_digests == {}
    assert plain.identity() == hashing.identity()


def test_rows_that_only_the_base_has_are_in_its_fingerprint(tmp_path: Path) -> None:
    tuned = TUNED | {"a": TUNED["a"][:40]}
    pair = file_pair(tmp_path, BASE, tuned, on_resize="rows")
    read_tensors(pair)
    assert pair.identity().fingerprint == fingerprint(MemoryCheckpoint(BASE))


def test_an_artifact_records_the_identity_of_its_base(tmp_path: Path) -> None:
    artifact = compressed(file_pair(tmp_path, BASE, TUNED), tmp_path / "t.fsw")
    fresh = open_checkpoint(str(tmp_path / "base.safetensors"))
    assert artifact.header.base == identify(fresh)
    assert artifact.header.base.fingerprint == fingerprint(fresh)


# --- several tasks of one base ----------------------------------------------------------------------------


def test_a_base_is_hashed_once_for_all_its_tasks(tmp_path: Path, entries: Counter[str]) -> None:
    expected = file_pair(tmp_path, BASE, TUNED).identity()
    entries.clear()
    again = opened(tmp_path)
    assert again.hints.base_digests.keys() == BASE.keys()
    assert again.identity() == expected
    assert +entries == {"a": SLICES, "b": SLICES, "n": SLICES, "scale": 1}


def test_a_base_that_changed_is_hashed_again(tmp_path: Path) -> None:
    before = file_pair(tmp_path, BASE, TUNED).identity()
    path = tmp_path / "base.safetensors"
    stat = path.stat()
    changed = BASE | {"n": BASE["n"] + 1}
    file_pair(tmp_path, changed, TUNED)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    pair = opened(tmp_path)
    assert pair.hints.base_digests == {}
    assert pair.identity().fingerprint == fingerprint(MemoryCheckpoint(changed)) != before.fingerprint


def test_bases_in_memory_share_no_digests() -> None:
    one = memory_pair(BASE, TUNED)
    read_tensors(one)
    other = memory_pair(BASE | {"a": BASE["a"] * 2}, TUNED)
    assert other.identity().fingerprint == fingerprint(MemoryCheckpoint(BASE | {"a": BASE["a"] * 2}))
