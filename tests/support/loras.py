"""PEFT adapters of a toy model and their error messages, for the tests of LoRA."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.opening import locate, open_checkpoint
from flexswitch.merging.checkpoints.pairing import EVERYTHING, Selection
from flexswitch.merging.task_vectors.lora import LoraVector

PEFT_WARNINGS = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # peft asks transformers for it
    "ignore:fan_in_fan_out is set to:UserWarning:peft",
)


class Toy(nn.Module):
    """One of each layer that peft adapts; it is never run."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.first = nn.Linear(6, 8)
        self.block = nn.ModuleDict({"first": nn.Linear(8, 8), "second": nn.Linear(8, 5, bias=False)})
        self.conv1 = nn.Conv1d(3, 4, 5)
        self.conv2 = nn.Conv2d(3, 4, (2, 3))
        self.point = nn.Conv2d(4, 6, 1)
        self.conv3 = nn.Conv3d(2, 3, (1, 2, 3))
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(8, 3)


def make_toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


def save_base(toy: Toy, folder: Path) -> Path:
    folder.mkdir()
    save_file(toy.state_dict(), folder / "model.safetensors")
    return folder


def adapt(model: nn.Module, directory: Path, **settings: Any) -> dict[str, Tensor]:
    """Saves an adapter with random weights; returns the weights that peft merges it into."""
    return dict(save_adapter(model, directory, **settings).merge_and_unload().state_dict())


def save_adapter(model: nn.Module, directory: Path, **settings: Any) -> PeftModel:
    torch.manual_seed(1)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(**settings))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    adapted.save_pretrained(directory)
    return adapted


def save_small_adapter(toy: Toy, directory: Path) -> Path:
    """Saves a LoRA of rank 2 on `first` (6 → 8) and `block.first` (8 → 8)."""
    save_adapter(toy, directory, r=2, target_modules=["first"])
    return directory


def edit_config(adapter: Path, **changes: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(adapter: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")


def refusal(base: Path, adapter: Path, selection: Selection = EVERYTHING) -> str:
    """Returns the one-line error of an adapter, with its paths replaced by BASE and ADAPTER."""
    with pytest.raises(InputError) as caught:
        LoraVector(open_checkpoint(str(base)), locate(str(adapter)), selection)
    message = str(caught.value).replace(str(base), "BASE").replace(str(adapter), "ADAPTER")
    assert "\n" not in message
    return message
