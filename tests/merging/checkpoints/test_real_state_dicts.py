"""Files of torch.save that hold a state dict among other things."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import message
from support.commands import Runner
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.opening import open_checkpoint

STATE: dict[str, Tensor] = {"layer.bias": torch.ones(3), "layer.weight": torch.ones(3, 3)}
OPTIMIZER = {
    "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(3)}},
    "param_groups": [{"lr": 0.1}],
}

TAKEN: dict[str, tuple[str, Any, str]] = {
    "an ImageNet checkpoint": ("best.pth.tar", {"epoch": 3, "state_dict": STATE, "optimizer": OPTIMIZER}, "state_dict"),
    "Lightning": ("last.ckpt", {"state_dict": STATE, "optimizer_states": [OPTIMIZER], "callbacks": {}}, "state_dict"),
    "two levels": ("run.pt", {"model": {"state_dict": STATE, "name": "x"}, "step": torch.tensor(1)}, "model.state_dict"),
}  # fmt: skip


@pytest.mark.parametrize("situation", TAKEN)
def test_the_only_state_dict_of_a_file_is_taken_and_named(tmp_path: Path, situation: str) -> None:
    name, document, key = TAKEN[situation]
    torch.save(document, tmp_path / name)
    checkpoint = open_checkpoint(tmp_path / name)
    assert list(checkpoint.tensors) == ["layer.bias", "layer.weight"]
    assert checkpoint.notes == [f"{tmp_path / name}: its tensors under '{key}' are taken"]


def test_of_several_state_dicts_none_is_taken_silently(tmp_path: Path) -> None:
    torch.save({"model": STATE, "ema": STATE}, tmp_path / "run.pt")
    assert message(InputError, lambda: open_checkpoint(tmp_path / "run.pt")) == (
        f"{tmp_path / 'run.pt'}: holds the state dicts ema, model, expected one; name one of a fine-tuned "
        'checkpoint with --key ema, or save it alone, as a base has to be: python -c "import torch; '
        f"torch.save(torch.load('{tmp_path / 'run.pt'}', weights_only=True)['ema'], 'NEW.pt')\""
    )


def test_the_command_that_saves_a_state_dict_alone_works(tmp_path: Path, monkeypatch: Any) -> None:
    states = {"model": {"state_dict": STATE, "step": 3}, "net": {"state_dict": STATE}}
    torch.save(states, tmp_path / "run.pt")
    found = message(InputError, lambda: open_checkpoint(tmp_path / "run.pt"))
    monkeypatch.chdir(tmp_path)
    exec(found.split('python -c "')[1].removesuffix('"'), {})
    assert torch.load(tmp_path / "NEW.pt")["layer.bias"].tolist() == [1, 1, 1]


def test_a_merge_takes_the_state_dicts_of_a_key(tmp_path: Path, flexswitch: Runner) -> None:
    save_file(STATE, tmp_path / "base.safetensors")
    for number, run in enumerate(("one", "two"), 1):
        ema = {name: tensor + number for name, tensor in STATE.items()}
        torch.save({"model": {"state_dict": STATE}, "ema": {"state_dict": ema}}, tmp_path / f"{run}.pth.tar")
    runs = (tmp_path / "one.pth.tar", tmp_path / "two.pth.tar")
    options = ("--base", tmp_path / "base.safetensors", "--key", "ema.state_dict")
    assert flexswitch("merge", *runs, *options, "-o", tmp_path / "ema", "--method", "average").status == 0
    assert load_file(tmp_path / "ema" / "model.safetensors")["layer.bias"].tolist() == [2.5, 2.5, 2.5]
    assert flexswitch("merge", *runs, *options, "-o", tmp_path / "two", "--task", "two").status == 0
    assert load_file(tmp_path / "two" / "model.safetensors")["layer.bias"].tolist() == [3, 3, 3]
    flexswitch("compress", runs[0], *options, "-o", tmp_path / "one.fsw")
    found = flexswitch("merge", tmp_path / "one.fsw", *options, "-o", tmp_path / "no", "--method", "average")
    assert (found.status, "--key need a checkpoint" in found.err.replace("\n", " ")) == (2, True)


def test_a_key_names_the_state_dict_to_take(tmp_path: Path, flexswitch: Runner) -> None:
    ema = {name: tensor + 1 for name, tensor in STATE.items()}
    path = tmp_path / "run.pth.tar"
    torch.save({"model": {"state_dict": STATE}, "ema": {"state_dict": ema}}, path)
    checkpoint = open_checkpoint(path, "ema.state_dict")
    assert torch.equal(checkpoint.read("layer.bias"), ema["layer.bias"])
    assert message(InputError, lambda: open_checkpoint(path, "ema.state")) == (
        f"{path}: no state dict is named 'ema.state'; did you mean 'ema.state_dict'? "
        "(known: model.state_dict, ema.state_dict)"
    )
    save_file(STATE, tmp_path / "base.safetensors")
    assert message(InputError, lambda: open_checkpoint(tmp_path / "base.safetensors", "ema")) == (
        f"{tmp_path / 'base.safetensors'}: --key ema: a safetensors file has no state dicts inside; leave it out"
    )
    command = ("extract", tmp_path / "base.safetensors", path, "-o", tmp_path / "run.tv.safetensors")
    assert flexswitch(*command).status == 1
    assert flexswitch(*command, "--key", "ema.state_dict").status == 0
    assert load_file(tmp_path / "run.tv.safetensors")["layer.bias"].tolist() == [1, 1, 1]
    command = ("compress", path, "--base", tmp_path / "base.safetensors", "-o", tmp_path / "run.fsw")
    assert flexswitch(*command, "--key", "model.state_dict").status == 0


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "optimizer": OPTIMIZER}, tmp_path / "run.pth.tar")
    assert "not a state dict" in message(InputError, lambda: open_checkpoint(tmp_path / "run.pth.tar"))
