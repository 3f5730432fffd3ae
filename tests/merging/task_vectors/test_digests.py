"""The base's fingerprint is computed while its tensors are read for the task vector."""

from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.checkpoints import MemoryCheckpoint, State, compressed, file_pair, use_small_blocks
from torch import Tensor

from flexswitch.merging.checkpoints.fingerprint import fingerprint, identify
from flexswitch.merging.checkpoints.hashing import HashingCheckpoint
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.checkpoints.safetensors_checkpoint import SafetensorsCheckpoint
from flexswitch.merging.commands.compress import compress
from flexswitch.merging.commands.extract import extract
from flexswitch.merging.commands.merge import merge
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
EVERYTHING = {"a": 3000, "b": 2000, "n": 2500, "scale": 1}


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
    assert +entries == {"n": 2500, "scale": 1}
    entries.clear()
    assert fingerprint(pair.base) == fingerprint(MemoryCheckpoint(BASE))
    assert +entries == {}


@pytest.mark.parametrize("command", [compress, extract])
def test_every_tensor_of_the_base_is_read_once(
    tmp_path: Path, entries: Counter[str], command: Callable[..., object]
) -> None:
    file_pair(tmp_path, BASE, TUNED)
    base, tuned = (tmp_path / f"{stem}.safetensors" for stem in ("base", "finetuned"))
    if command is compress:
        compress(tuned, tmp_path / "t.fsw", base=base)
    else:
        extract(base, tuned, tmp_path / "t.tv.safetensors", dtype="bfloat16")
        entries.subtract({"a": 3000, "b": 2000})  # once more, for their norm
    assert +entries == EVERYTHING


def test_merge_reads_every_tensor_of_the_base_once(tmp_path: Path, entries: Counter[str]) -> None:
    compressed(file_pair(tmp_path, BASE, TUNED), tmp_path / "t.fsw")
    entries.clear()
    merge([tmp_path / "t.fsw"], tmp_path / "out", base=tmp_path / "base.safetensors", task="task")
    assert +entries == EVERYTHING


def test_identity_before_any_block_reads_everything_once(tmp_path: Path, entries: Counter[str]) -> None:
    pair = file_pair(tmp_path, BASE, TUNED)
    expected = pair.identity()
    assert +entries == EVERYTHING
    entries.clear()
    assert pair.identity() == expected == identify(MemoryCheckpoint(BASE))
    assert +entries == {}


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
    other = opened(tmp_path)
    for name in other.tensors:
        other.exact(name)
    assert other.hints.base_digests == before


def test_only_reads_from_the_first_entry_to_the_last_give_a_digest() -> None:
    base = HashingCheckpoint(MemoryCheckpoint(BASE))
    for start, stop in ((0, 1000), (2000, 3000), (1500, 2000), (2000, 3000)):
        base.read("a", start, stop)
    assert base.digests == {}
    for start, stop in ((0, 10), (0, 1000), (1000, 2000), (2000, 3000)):
        base.read("a", start, stop)
    assert list(base.digests) == ["a"]
    assert base.fingerprint() == fingerprint(MemoryCheckpoint(BASE))


def test_several_readers_of_one_tensor_side_by_side_give_its_digest() -> None:
    base = HashingCheckpoint(MemoryCheckpoint(BASE))
    for start, stop in ((0, 1000), (1000, 2000), (2000, 3000)):
        for _ in range(3):
            base.read("a", start, stop)
    assert list(base.digests) == ["a"]
    assert base.fingerprint() == fingerprint(MemoryCheckpoint(BASE))


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
