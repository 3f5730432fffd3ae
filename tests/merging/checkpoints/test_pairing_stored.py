"""How resized tensors, buffers and unchanged tensors are stored: docs/methods.md §1, rule by rule."""

from pathlib import Path

import pytest
import torch
from support.checkpoints import (
    MemoryCheckpoint,
    State,
    assert_same_state,
    bits,
    compressed,
    extracted,
    file_pair,
    memory_pair,
    save_model,
    use_small_blocks,
)
from support.pairings import BASE, refused, tuned

from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.checkpoints.pairing import Selection
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.restore import restore
from flexswitch.merging.task_vectors.task_vector import delta_tensor


def test_a_resized_tensor_is_refused_with_both_shapes_and_both_options() -> None:
    finetuned = tuned() | {"words.weight": torch.ones(5, 2)}
    assert refused(BASE, finetuned) == (
        "finetuned: tensor 'words.weight' has the shape [5, 2], expected the base's [3, 2]; store it whole "
        "with --on-resize extra, or take the overlapping rows with --on-resize rows"
    )


@pytest.mark.parametrize("shape", [(3, 4), (6,), (3, 2, 1), ()])
@pytest.mark.parametrize("on_resize", ["refuse", "rows"])
def test_a_tensor_whose_rows_do_not_fit_can_only_be_stored_whole(
    shape: tuple[int, ...], on_resize: str
) -> None:
    finetuned = tuned() | {"words.weight": torch.ones(shape)}
    assert refused(BASE, finetuned, on_resize=on_resize) == (
        f"finetuned: tensor 'words.weight' has the shape {list(shape)}, expected the base's [3, 2]; store it "
        "whole with --on-resize extra"
    )
    pair = memory_pair(BASE, finetuned, on_resize="extra")
    assert pair.extras["words.weight"].shape == shape
    assert_same_state(restore(MemoryCheckpoint(BASE), pair), finetuned)


@pytest.mark.parametrize("rows", [1, 5])
def test_a_resized_tensor_is_stored_whole_and_restored(tmp_path: Path, rows: int) -> None:
    finetuned = tuned() | {"words.weight": torch.randn(rows, 2)}
    pair = file_pair(tmp_path, BASE, finetuned, on_resize="extra")
    assert "words.weight" not in pair.tensors
    for vector in (
        extracted(pair, tmp_path / "t.tv.safetensors"),
        compressed(pair, tmp_path / "t.fsw", "p-discard", drop=0.0),
    ):
        assert_same_state(restore(str(tmp_path / "base.safetensors"), vector), finetuned)


@pytest.mark.parametrize("rows", [1, 2, 4, 9])
@pytest.mark.parametrize("block", [8, 1 << 20])
def test_the_overlapping_rows_are_taken_and_the_others_are_the_base_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, block: int
) -> None:
    use_small_blocks(monkeypatch, block)
    base = {"v": torch.zeros(30), "w": torch.arange(20.0).reshape(4, 5)}
    finetuned = {"v": torch.ones(30), "w": torch.arange(5.0 * rows).reshape(rows, 5) + 1, "x": torch.ones(30)}
    pair = file_pair(tmp_path, base, finetuned, on_resize="rows")
    assert pair.tensors["w"].shape == (4, 5)
    expected = torch.zeros(4, 5)
    expected[:rows] = 1
    assert torch.equal(delta_tensor(pair, "w"), expected)
    assert [len(block) for block in pair.blocks("w")] == ([8, 8, 4] if block == 8 else [20])


def test_a_config_counts_the_rows_that_are_taken(tmp_path: Path) -> None:
    config = {"vocab_size": 3, "hidden_size": 2, "note": 3}
    finetuned = {"vocab_size": 5, "hidden_size": 2, "note": 4, "labels": 5}
    base = open_checkpoint(str(save_model(tmp_path / "base", BASE, config)))
    resized = tuned() | {"words.weight": torch.ones(5, 2)}
    other = open_checkpoint(str(save_model(tmp_path / "task", resized, finetuned)))
    changes = {
        on_resize: CheckpointPair(base, other, selection).model.config
        for on_resize, selection in {
            "extra": Selection(on_resize="extra"),
            "rows": Selection(on_resize="rows"),
        }.items()
    }
    assert changes["extra"] == {"vocab_size": 5, "note": 4, "labels": 5}
    assert changes["rows"] == {"note": 4, "labels": 5}


def test_a_quantised_checkpoint_is_refused() -> None:
    finetuned = tuned() | {"encoder.weight": torch.ones(2, 2, dtype=torch.int8)}
    assert refused(BASE, finetuned) == (
        "finetuned: tensor 'encoder.weight' has the dtype I8, expected a floating one as the base's F32; "
        "give the checkpoint from before it was quantised"
    )


BUFFERS: State = {
    "counter": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "positions": torch.arange(4),
    "scale": torch.tensor(1.5),
    "w": torch.zeros(2),
}


def test_buffers_that_are_the_base_s_are_not_stored() -> None:
    assert dict(memory_pair(BUFFERS, dict(BUFFERS)).extras) == {}


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("counter", torch.tensor(8)),
        ("counter", torch.tensor(7, dtype=torch.int32)),
        ("flags", torch.tensor([True, True])),
        ("positions", torch.arange(6)),
        ("scale", torch.tensor(1.25)),
        ("scale", torch.tensor(1.5, dtype=torch.float16)),
    ],
)
def test_a_buffer_that_differs_is_stored_raw(tmp_path: Path, name: str, tensor: torch.Tensor) -> None:
    finetuned = BUFFERS | {name: tensor}
    pair = file_pair(tmp_path, BUFFERS, finetuned)
    assert list(pair.tensors) == ["w"]
    assert list(pair.extras) == [name]
    for vector in (extracted(pair, tmp_path / "t.tv.safetensors"), compressed(pair, tmp_path / "t.fsw")):
        assert_same_state(restore(str(tmp_path / "base.safetensors"), vector), finetuned)


def test_a_buffer_under_a_prefix_is_stored_under_the_fine_tuned_name() -> None:
    finetuned = {f"bert.{name}": tensor for name, tensor in BUFFERS.items()} | {
        "bert.counter": torch.tensor(9)
    }
    pair = memory_pair(BUFFERS, finetuned)
    assert list(pair.extras) == ["bert.counter"]
    assert_same_state(restore(MemoryCheckpoint(BUFFERS), pair), finetuned)


def test_an_integer_buffer_that_is_not_saved_is_the_base_s() -> None:
    finetuned = {"w": torch.ones(2), "scale": torch.tensor(1.5)}
    pair = memory_pair(BUFFERS, finetuned)
    assert dict(pair.extras) == {}
    assert_same_state(restore(MemoryCheckpoint(BUFFERS), pair), BUFFERS | finetuned)


def test_a_floating_buffer_without_dimensions_that_is_not_saved_is_missing() -> None:
    assert refused(BUFFERS, {"w": torch.ones(2)}).startswith("finetuned: lacks 1 tensors of the base")


def test_a_delta_of_zeros_is_left_out_of_an_artifact_and_decodes_to_zeros(tmp_path: Path) -> None:
    finetuned = BASE | {"encoder.bias": torch.tensor([1.0, 3.0])}
    artifact = compressed(file_pair(tmp_path, BASE, finetuned), tmp_path / "t.fsw", drop=0.0)
    assert list(artifact.header.tensors) == ["encoder.bias"]
    assert artifact.header.parameters == 12
    assert_same_state(restore(str(tmp_path / "base.safetensors"), artifact), finetuned)


def test_checkpoints_that_are_equal_give_an_artifact_without_tensors(tmp_path: Path) -> None:
    artifact = compressed(file_pair(tmp_path, BASE, BASE), tmp_path / "t.fsw")
    assert ArtifactVector(artifact).tensors == {}
    assert_same_state(restore(str(tmp_path / "base.safetensors"), artifact), BASE)


def test_an_extra_keeps_its_bits(tmp_path: Path) -> None:
    head = torch.tensor([float("nan"), -0.0, float("inf")], dtype=torch.float16)
    pair = file_pair(tmp_path, BASE, tuned() | {"head": head})
    restored = restore(str(tmp_path / "base.safetensors"), extracted(pair, tmp_path / "t.tv.safetensors"))
    assert bits(restored["head"]) == bits(head)
