"""Directories that hold a model in a way that is not read: the refusal says what they are and what to do."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import message

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.opening import open_checkpoint

STATE = {"layer.weight": torch.ones(2, 2), "layer.bias": torch.zeros(2)}


def put(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(STATE, folder / name)

    return write


LAYOUTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "an adapter by its name": (put("birds/adapter_config.json"), "its folder birds is a PEFT adapter; give that"),
    "a run's checkpoints": (put("checkpoint-9/model.safetensors"), "its folder checkpoint-9 has weights; give that"),
    "shards in a folder": (put("last/model.safetensors.index.json"), "its folder last has weights; give that"),
    "DeepSpeed": (put("zero_to_fp32.py"), "it is a checkpoint of DeepSpeed; join its parts: cd RUN && python zero_to_fp32.py . NEW"),
    "the authors' names": (put("consolidated.00.pth"), "consolidated.00.pth has the names of the model's authors; convert it to transformers' format"),
    "a variant": (put("model.fp16.safetensors"), "model.fp16.safetensors is a variant of the weights; rename it to model.safetensors"),
    "TensorFlow": (put("tf_model.h5"), "tf_model.h5 has TensorFlow's weights; convert them with transformers 4: from_pretrained(..., from_tf=True)"),
    "Flax": (put("flax_model.msgpack"), "flax_model.msgpack has Flax's weights; convert them with transformers 4: from_pretrained(..., from_flax=True)"),
}  # fmt: skip


def refusal(folder: Path) -> str:
    found = message(InputError, lambda: open_checkpoint(folder)).replace(str(folder), "RUN")
    return found.removeprefix(
        "RUN: not a checkpoint: it has none of model.safetensors, model.safetensors.index.json, "
        "pytorch_model.bin, pytorch_model.bin.index.json, adapter_config.json"
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_that_is_not_read_is_named(tmp_path: Path, layout: str) -> None:
    write, expected = LAYOUTS[layout]
    write(tmp_path)
    assert refusal(tmp_path) == f"; {expected}"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_of_git_is_no_damaged_file(tmp_path: Path, name: str) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 90868376\n"
    (tmp_path / name).write_text(pointer)
    assert message(InputError, lambda: open_checkpoint(tmp_path)) == (
        f"{tmp_path / name}: is a pointer of Git LFS, and not the weights; get them: git lfs pull"
    )


def test_nothing_is_said_of_other_directories(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("model")
    assert refusal(tmp_path) == ""


@pytest.mark.deep
@pytest.mark.filterwarnings("ignore")
def test_the_command_that_joins_a_distributed_checkpoint_works(tmp_path: Path) -> None:
    from torch.distributed.checkpoint import save

    save({"model": dict(STATE)}, checkpoint_id=str(tmp_path / "run"), no_dist=True)
    command = (
        refusal(tmp_path / "run").split("join its parts: python ")[1].replace("RUN", str(tmp_path / "run"))
    )
    subprocess.run([sys.executable, *command.split()], cwd=tmp_path, check=True)
    joined = open_checkpoint(tmp_path / "NEW.pt")
    assert joined.tensors.keys() == STATE.keys()
    assert joined.read("layer.weight").tolist() == [1, 1, 1, 1]
