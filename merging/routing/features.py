"""Features of examples: computed by the base model, or read from the user's file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError, UsageError, unknown_name
from flexswitch.merging.checkpoint import Checkpoint, SafetensorsCheckpoint
from flexswitch.merging.device import check_device
from flexswitch.merging.evaluation.adapters import Adapter, get_adapter
from flexswitch.merging.evaluation.data import Examples

FROM_FILE = "file"
_BATCH = 64


class FeatureSource(Protocol):
    """Where features come from; `kind` is recorded with a query set and asked for again at use."""

    @property
    def kind(self) -> str:
        """The features' name."""

    def rows(self, task: str, split: str, examples: Examples, rows: NDArray[np.int64]) -> Tensor:
        """Returns the features of some examples of one file, (row, width) float32 on the CPU."""


def feature_source(
    features: str, base: Checkpoint, adapter: str | None, trusted: bool, device: str
) -> FeatureSource:
    """Returns the source that `--features` names.

    Raises: UsageError on an unknown kind or adapter; InputError on a missing file or device.
    """
    check_device(device)
    if features.endswith(".safetensors"):
        return FileFeatures(Path(features))
    if features != "pooled" and not (features.startswith("layer:") and features[6:].isdecimal()):
        raise UsageError(
            f"--features: {unknown_name('kind', features, ('pooled', 'layer:N', 'FILE.safetensors'))}"
        )
    return model_features(features, get_adapter(adapter, base, trusted), device)


def model_features(kind: str, adapter: Adapter, device: str) -> FeatureSource:
    """Returns the base model as a source of features."""
    return ModelFeatures(kind, adapter, adapter.encoder().to(device), device)


@dataclass(frozen=True)
class ModelFeatures:
    """The base model's pooled embedding, or the mean of a layer's tokens. Source: methods, §3."""

    kind: str
    adapter: Adapter
    encoder: nn.Module
    device: str

    def rows(self, task: str, split: str, examples: Examples, rows: NDArray[np.int64]) -> Tensor:
        """Returns the features of some examples, (row, width) float32 on the CPU."""
        found = []
        with torch.inference_mode():
            for start in range(0, len(rows), _BATCH):
                inputs = examples.take(rows[start : start + _BATCH]).inputs
                batch = {name: value.to(self.device) for name, value in self.adapter.batch(inputs).items()}
                found.append(self.adapter.features(self.encoder, batch, self.kind).float().cpu())
        return torch.cat(found)


class FileFeatures:
    """A safetensors file with one tensor `<task>.<split>` (example, width) for each examples file."""

    kind = FROM_FILE

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(
                f"{path}: no such file; expected features as tensors <task>.train and <task>.test"
            )
        self._file = SafetensorsCheckpoint(str(path), [path], None)

    def rows(self, task: str, split: str, examples: Examples, rows: NDArray[np.int64]) -> Tensor:
        """Returns the features of some examples. Raises: InputError where the file has others."""
        name = f"{task}.{split}"
        if name not in self._file.tensors:
            raise InputError(
                f"{self._file.source}: has no tensor '{name}', expected [{len(examples)}, width]"
            )
        shape = self._file.tensors[name].shape
        if len(shape) != 2 or shape[0] != len(examples):
            raise InputError(
                f"{self._file.source}: tensor '{name}' has the shape {list(shape)}, "
                f"expected [{len(examples)}, width], a row for each example"
            )
        return self._file.read(name).float().reshape(shape)[torch.from_numpy(rows)]
