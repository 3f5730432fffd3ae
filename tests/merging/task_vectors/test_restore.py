"""Base plus task vector: tensor by tensor, lazily, under the fine-tuned names."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import (
    MemoryCheckpoint,
    State,
    assert_same_state,
    compressed,
    extracted,
    file_pair,
    memory_pair,
    message,
    save_model,
    use_small_blocks,
)

from flexswitch.codecs.errors import ArtifactError, InputError
from flexswitch.codecs.format.safetensors_file import RangeReader
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.task_vectors.open_vector import open_finetuned, task_vector_openers
from flexswitch.merging.task_vectors.restore import restore, restored_tensors
from flexswitch.merging.zoos.pack import Form, create_zoo

BASE: State = {
    "norm": torch.tensor([1.0, -2.0, 3.0]),
    "steps": torch.tensor([4]),
    "words": torch.arange(40.0).reshape(8, 5),
}
TUNED: State = BASE | {
    "norm": torch.tensor([1.5, -2.5, 3.5]),
    "words": torch.arange(40.0).reshape(8, 5) * 0.75,
    "head": torch.tensor([[1.0], [2.0]]),
}


def test_a_restored_state_has_the_fine_tuned_names_in_order(tmp_path: Path) -> None:
    tuned = {f"model.{name}" if name in BASE else name: tensor for name, tensor in TUNED.items()}
    pair = file_pair(tmp_path, BASE, tuned)
    artifact = compressed(pair, tmp_path / "t.fsw", "p-discard", drop=0.0)
    state = restore(str(tmp_path / "base.safetensors"), artifact)
    assert list(state) == ["head", "model.norm", "model.steps", "model.words"]
    assert len(state) == 4
    assert_same_state(state, tuned)


def test_a_restored_state_loads_into_a_module(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    base = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    tuned = {name: tensor + 1 for name, tensor in base.items()}
    module.load_state_dict(restore(MemoryCheckpoint(base), memory_pair(base, tuned)))
    assert_same_state(module.state_dict(), tuned)


def test_only_the_requested_tensors_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"a": torch.zeros(10), "b": torch.zeros(2000)}
    pair = file_pair(tmp_path, base, {"a": torch.ones(10), "b": torch.ones(2000)})
    state = restore(str(tmp_path / "base.safetensors"), extracted(pair, tmp_path / "t.tv.safetensors"))
    read, found = RangeReader.read, []

    def recording(self: RangeReader, offset: int, size: int) -> Any:
        found.append((self.path.name, size))
        return read(self, offset, size)

    monkeypatch.setattr(RangeReader, "read", recording)
    assert state["a"].tolist() == [1] * 10
    assert found == [("base.safetensors", 40), ("t.tv.safetensors", 40)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_sum_is_rounded_once_to_the_base_s_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    base = {"w": torch.randn(30).to(dtype)}
    pair = file_pair(tmp_path, base, {"w": torch.randn(30)})
    artifact = compressed(pair, tmp_path / "t.fsw", "p-discard", drop=0.0)
    delta = pair.blocks("w")
    expected = {"w": (base["w"].float() + torch.from_numpy(next(delta))).to(dtype)}
    assert_same_state(restore(str(tmp_path / "base.safetensors"), artifact), expected)


def test_the_size_of_blocks_does_not_change_the_restored_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = file_pair(tmp_path, BASE, TUNED)
    artifact = compressed(pair, tmp_path / "t.fsw")
    expected = dict(restore(MemoryCheckpoint(BASE), artifact))
    use_small_blocks(monkeypatch)
    assert_same_state(restore(MemoryCheckpoint(BASE), artifact), expected)
    output = restored_tensors(MemoryCheckpoint(BASE), pair, 1.0, None)["words"]
    assert [len(block) for block in output.blocks()] == [16, 16, 8]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_restoring_does_not_change_the_base(tmp_path: Path, kind: str) -> None:
    artifact = compressed(file_pair(tmp_path, BASE, TUNED), tmp_path / "t.fsw")
    base = open_checkpoint(str(save_model(tmp_path / "base", BASE, kind=kind)))
    state = restore(base, artifact)
    expected = dict(state)
    assert_same_state(state, expected)
    assert_same_state(restore(base, artifact), expected)
    assert torch.equal(base.read("norm"), BASE["norm"])


def test_entries_that_do_not_change_keep_the_base_s_value(tmp_path: Path) -> None:
    artifact = compressed(file_pair(tmp_path, BASE, TUNED), tmp_path / "t.fsw", drop=0.97)
    found = restore(str(tmp_path / "base.safetensors"), artifact)["words"]
    changed = found != BASE["words"]
    assert int(changed.sum()) == int(0.03 * 39)
    assert found.dtype == torch.float32


def test_another_base_is_refused(tmp_path: Path) -> None:
    artifact = compressed(file_pair(tmp_path, BASE, TUNED), tmp_path / "t.fsw")
    other = save_model(tmp_path / "other", BASE | {"norm": torch.zeros(3)})
    found = message(InputError, lambda: restore(str(other), artifact))
    assert found.startswith(f"{other}: is not the base of {tmp_path}/t.fsw: its fingerprint is ")
    assert found.endswith("; give the base it was made from")


@pytest.mark.parametrize(
    ("base", "held"),
    [({"w": torch.zeros(3)}, "has it with the shape [3]"), ({"v": torch.zeros(2)}, "has none of that name")],
)
def test_a_task_vector_that_does_not_fit_the_base_is_refused(base: State, held: str) -> None:
    vector = memory_pair({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    other = MemoryCheckpoint(base)
    assert message(InputError, lambda: restored_tensors(other, vector, 1.0, None)).startswith(
        "memory: is not the base of finetuned: its fingerprint is "
    )
    damaged = copy.copy(vector)
    damaged.base = other  # whose identity it then has
    assert message(ArtifactError, lambda: restored_tensors(other, damaged, 1.0, None)) == (
        f"finetuned: tensor 'w' has the shape [2] and the base memory {held}; make the task vector again"
    )


def test_every_kind_of_source_opens_as_task_vectors(tmp_path: Path) -> None:
    pair = file_pair(tmp_path, BASE, TUNED)
    base = open_checkpoint(str(tmp_path / "base.safetensors"))
    vector = extracted(pair, tmp_path / "t.tv.safetensors")
    artifact = compressed(pair, tmp_path / "t.fsw", "p-discard", drop=0.0)
    create_zoo(tmp_path / "zoo", [artifact.path], Form(), None, False, lambda name: None)
    sources = [vector.path, artifact.path, tmp_path / "zoo", tmp_path / "finetuned.safetensors"]
    for source in sources:
        openers = task_vector_openers(str(source), base)
        assert list(openers) == ["finetuned" if source == sources[-1] else "task"]
        assert_same_state(restore(base, *(opener() for opener in openers.values())), TUNED)


def test_a_fine_tuned_source_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    found = message(InputError, lambda: open_finetuned(str(tmp_path / "no model"), MemoryCheckpoint(BASE)))
    assert found == (
        f"{tmp_path}/no model: no such file or directory; expected a checkpoint, or a hub id org/name"
    )
