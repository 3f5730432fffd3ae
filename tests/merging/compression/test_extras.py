"""`--extras`: how a task's own tensors are stored, and that a target size counts them."""

from pathlib import Path

import pytest
import torch
from support.checkpoints import memory_pair, message, save_model
from support.deltas import normal
from torch import Tensor

from flexswitch.codecs.errors import UsageError
from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.commands.compress import compress
from flexswitch.merging.commands.pack import pack
from flexswitch.merging.compression.extras import pack_extras
from flexswitch.merging.task_vectors.raw_tensors import to_torch

BASE = {"w": torch.from_numpy(normal((300, 400), 0)).float()}
HEAD = torch.from_numpy(normal((150, 200), 3)).float()
TUNED = {
    "w": BASE["w"] + 0.01 * torch.from_numpy(normal((300, 400), 1)).float(),
    "head.weight": HEAD,
    "head.bias": torch.from_numpy(normal((150,), 4)).float(),
    "position_ids": torch.arange(9).reshape(3, 3),
}
SIZED = {"method": "flexswitch", "settings": {"objective": "none"}}


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """The folders of a base and of a fine-tuned model with a large head."""
    return save_model(tmp_path / "base", BASE), save_model(tmp_path / "fine", TUNED)


def head_of(artifact: Artifact) -> Tensor:
    return to_torch(artifact.extra("head.weight"))


def forms(artifact: Artifact) -> dict[str, tuple[str, dict[str, int]]]:
    extras = artifact.header.extras
    return {name: (record.form.name, record.form.settings) for name, record in extras.items()}


@pytest.mark.parametrize(
    ("extras", "form", "error"),
    [("float16", ("float16", {}), 1e-3), ("int8", ("quantised-rows", {"bits": 8}), 0.01),
     ("auto", ("quantised-rows", {"bits": 8}), 0.01)],
)  # fmt: skip
def test_matrices_are_rounded_and_all_else_is_exact(tmp_path, places, extras, form, error) -> None:
    artifact = compress(places[1], tmp_path / "t.fsw", base=places[0], extras=extras)
    assert forms(artifact)["head.weight"] == form
    assert 0 < (head_of(artifact) - HEAD).norm() / HEAD.norm() < error
    for name in ("head.bias", "position_ids"):
        assert torch.equal(to_torch(artifact.extra(name)), TUNED[name])


def test_extras_are_exact_by_default_without_a_size(tmp_path: Path, places: tuple[Path, Path]) -> None:
    artifact = compress(places[1], tmp_path / "t.fsw", base=places[0])
    assert torch.equal(head_of(artifact), HEAD)


@pytest.mark.parametrize(("size", "bits"), [("120KB", 8), ("80KB", 6), ("30KB", 4)])
def test_a_target_size_chooses_the_width_of_the_head_and_is_met(tmp_path, places, size, bits) -> None:
    artifact = compress(places[1], tmp_path / "t.fsw", base=places[0], target_size=size, **SIZED)
    assert forms(artifact)["head.weight"] == ("quantised-rows", {"bits": bits})
    target = 1000 * int(size.removesuffix("KB"))
    assert artifact.path.stat().st_size <= target
    assert artifact.extra_bytes() < target


def test_the_user_is_told_that_a_head_is_rounded(tmp_path, places, flexswitch) -> None:
    found = flexswitch(
        "compress", places[1], "--base", places[0], "-o", tmp_path / "t.fsw", "--extras", "int8"
    )
    assert "rounded to 8 bits and take" in found.err


def test_a_zoo_keeps_the_stored_form(tmp_path: Path, places: tuple[Path, Path]) -> None:
    artifact = compress(places[1], tmp_path / "t.fsw", base=places[0], extras="int8")
    packed = open_zoo(pack([artifact.path], tmp_path / "zoo").path)["t"]
    assert packed.header.extras == artifact.header.extras
    assert torch.equal(head_of(packed), head_of(artifact))


def test_lossless_refuses_to_round(tmp_path: Path, places: tuple[Path, Path]) -> None:
    def action() -> None:
        compress(places[1], tmp_path / "t.fsw", base=places[0], method="lossless", extras="int8")

    assert "lossless stores everything exactly" in message(UsageError, action)


def test_rows_of_different_sizes_keep_their_precision() -> None:
    head = HEAD * torch.logspace(-3, 3, 150)[:, None]
    vector = memory_pair(BASE, TUNED | {"head.weight": head})
    packed = pack_extras(vector, ["head.weight"], "int8")
    assert packed["head.weight"].record.form.name == "quantised-rows"
