"""A delta of a few experts stores those alone, fused or apart, and `inspect` names them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.commands import Runner
from torch import Tensor

FUSED = "model.layers.0.mlp.experts.gate_up_proj"
CHANGED = (2, 5)


def states() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns a base of 16 fused experts, and a fine-tune that changes two of them."""
    torch.manual_seed(0)
    base = {FUSED: torch.randn(16, 32, 64), "model.norm.weight": torch.randn(64)}
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    for expert in CHANGED:
        tuned[FUSED][expert] += 0.01 * torch.randn(32, 64)
    return base, tuned


def apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    own = {f"model.layers.0.mlp.experts.{n}.up.weight": each.clone() for n, each in enumerate(state[FUSED])}
    return own | {"model.norm.weight": state["model.norm.weight"]}


@pytest.mark.parametrize("method", ["t-switch", "p-discard"])
def test_only_the_changed_experts_are_stored_and_named(
    tmp_path: Path, flexswitch: Runner, method: str
) -> None:
    base, tuned = states()
    sizes = {}
    for kind, change in (("fused", dict), ("apart", apart)):
        folder = tmp_path / kind
        folder.mkdir()
        save_file(change(base), folder / "base.safetensors")
        save_file(change(tuned), folder / "tuned.safetensors")
        command = ("compress", folder / "tuned.safetensors", "--base", folder / "base.safetensors")
        assert flexswitch(*command, "-o", folder / "task.fsw", "--method", method).status == 0
        document = json.loads(flexswitch("inspect", folder / "task.fsw", "--json").out)
        sizes[kind] = document["payload_bytes"]
        if kind == "fused":
            experts = document["tensors"][FUSED]["experts"]
            assert [int(expert) for expert in experts] == list(CHANGED)
            assert sum(experts.values()) == document["tensors"][FUSED]["kept"]
            shown = flexswitch("inspect", folder / "task.fsw").out
            assert [line.split()[1] for line in shown.splitlines() if "expert " in line] == ["2", "5"]
        else:
            assert list(document["tensors"]) == [f"model.layers.0.mlp.experts.{n}.up.weight" for n in CHANGED]
    assert sizes["fused"] < 1.05 * sizes["apart"] + 64
