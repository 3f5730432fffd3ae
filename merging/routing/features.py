"""Features of examples: computed by a model, or read from the user's file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError, not_found
from flexswitch.codecs.format.zoo import Zoo
from flexswitch.codecs.threads import parallel_map
from flexswitch.merging.checkpoints.safetensors_checkpoint import SafetensorsCheckpoint
from flexswitch.merging.models.adapters import Adapter
from flexswitch.merging.models.conversations import prompt_text
from flexswitch.merging.models.examples import Batch, Examples, Inputs
from flexswitch.merging.models.feature_spec import (
    FROM_FILE,
    is_auto,
    is_shaped,
    layers_spec,
    model_spec,
    parse_feature_spec,
)
from flexswitch.merging.models.float64_computation import Float64Computation
from flexswitch.merging.models.hidden_states import has_layers, layer_count
from flexswitch.merging.models.language_adapters import LanguageModel
from flexswitch.merging.models.runner import FeatureDtype, Runner
from flexswitch.merging.routing.averaged_encoder import averaged_encoder
from flexswitch.merging.routing.grid import on_grid
from flexswitch.merging.routing.query_set import QuerySetHeader
from flexswitch.merging.routing.text_shape import with_shapes

_BATCH, _EXACT_BATCH = 64, 16
_BITS = 20
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class FeatureSource(Protocol):
    """Where features come from. A query set records `spec` and `dtype`, so that routing uses the same."""

    @property
    def spec(self) -> str:
        """The feature spec."""

    @property
    def dtype(self) -> FeatureDtype:
        """The dtype in which the model computes."""

    def rows(self, task: str, split: str, examples: Examples, rows: NDArray[np.int64]) -> Tensor:
        """Returns the features of samples to route, (row, width) float32 on the CPU."""

    def exemplars(self, task: str, examples: Examples, rows: NDArray[np.int64]) -> Tensor:
        """Returns the features of a task's exemplars, (row, width) float32 on the CPU.

        They have the same bits whatever the device, the processor and the number of threads.
        """


def feature_source(features: str, runner: Runner, zoo: Zoo) -> FeatureSource:
    """Returns the source for a value of `--features`; for "auto" one that concatenates all layers.

    For "shape+auto", the texts' shape precedes the layers; a model that does not tell its layers is pooled.
    Raises: UsageError on an unknown feature spec;
    InputError if the model has no layers to choose from.
    """
    if not is_auto(features):
        return model_features(features, runner, zoo, list(zoo))
    encoder = runner.adapter.encoder()
    if not has_layers(encoder):
        return ModelFeatures("pooled", runner.adapter, encoder.to(runner.device), runner.device, runner.dtype)
    spec = layers_spec(tuple(range(layer_count(encoder) + 1)), is_shaped(features))
    return ModelFeatures(spec, runner.adapter, encoder.to(runner.device), runner.device, runner.dtype)


def stored_source(header: QuerySetHeader, runner: Runner, zoo: Zoo, file: str | Path | None) -> FeatureSource:
    """Returns the source of the features that a zoo was indexed with.

    file: the feature file, if they came from one. Raises: InputError if a file is needed but not
    given, or given but not needed.
    """
    if (header.features == FROM_FILE) != (file is not None):
        wanted = "give that file with --features" if file is None else "leave out --features"
        raise InputError(f"{zoo.path}: was indexed with the features '{header.features}'; {wanted}")
    if file is not None:
        return FileFeatures(Path(file))
    return model_features(header.features, replace(runner, dtype=header.dtype), zoo, header.averaged or ())


def model_features(spec: str, runner: Runner, zoo: Zoo, averaged: Sequence[str]) -> "ModelFeatures":
    """Returns the base as a source of features; for `average:`, the average of the tasks named `averaged`.

    Raises: UsageError on an unknown feature spec.
    """
    adapter = runner.adapter
    is_averaged = parse_feature_spec(spec).averaged
    encoder = averaged_encoder(adapter, zoo, averaged) if is_averaged else adapter.encoder()
    return ModelFeatures(spec, adapter, encoder.to(runner.device), runner.device, runner.dtype)


@dataclass(frozen=True)
class ModelFeatures:
    """Means of a model's hidden states, preceded by the texts' shape if the spec includes it.

    dtype: of the matrix products when samples are routed. Source: docs/methods.md §3.
    """

    spec: str
    adapter: Adapter
    encoder: nn.Module
    device: str
    dtype: FeatureDtype = "float32"

    def rows(self, task: str, split: str, examples: Examples, rows: NDArray[np.int64]) -> Tensor:
        """Returns the features of some examples, (row, width) float32 on the CPU."""
        order = examples.order_by_length(rows)
        inputs = [examples.take(rows[part]).inputs for part in _chunks(order, _BATCH)]
        found = [self.of(self.batch(each), each) for each in inputs]
        return torch.cat(found)[torch.from_numpy(np.argsort(order, kind="stable"))]

    def exemplars(self, task: str, examples: Examples, rows: NDArray[np.int64]) -> Tensor:
        """Returns the features of exemplars, (row, width) float32 on the CPU.

        They are computed in float64 and rounded, which removes the last bits, as they depend on the processor
        and the device. Each batch is computed on one thread, so that the number of threads changes nothing.
        """
        order = examples.order_by_length(rows)
        inputs = [examples.take(rows[part]).inputs for part in _chunks(order, _EXACT_BATCH)]
        batches = [self.batch(each) for each in inputs]

        def exact(number: int) -> Tensor:
            with Float64Computation():
                found = self._of(batches[number], inputs[number])
            return on_grid(found, _BITS, parse_feature_spec(self.spec).parts).float()

        with parallel_map(torch.get_num_threads() if self.device == "cpu" else 1) as in_parallel:
            found = in_parallel(exact, len(batches))
        return torch.cat(found)[torch.from_numpy(np.argsort(order, kind="stable"))]

    def batch(self, inputs: Inputs) -> Batch:
        """Returns the batch of what a model is asked, since a router does not know the answer yet."""
        adapter = self.adapter
        found = adapter.prompts(inputs) if isinstance(adapter, LanguageModel) else adapter.batch(inputs)
        return {name: value.to(self.device) for name, value in found.items()}

    def of(self, batch: Batch, inputs: Inputs) -> Tensor:
        """Returns the features of a batch on the encoder's device, (row, width) float32 on the CPU.

        inputs: the examples that the batch was made of. Raises: InputError if the spec includes the texts'
        shape and the inputs are not texts.
        """
        with computing_in(self.dtype, self.device):
            return self._of(batch, inputs)

    def _of(self, batch: Batch, inputs: Inputs) -> Tensor:
        """Returns the features of a batch in the dtype of the context, (row, width) on the CPU."""
        spec = parse_feature_spec(self.spec)
        texts = self._texts(inputs) if spec.shaped else None
        with torch.inference_mode():
            means = self.adapter.features(self.encoder, batch, model_spec(self.spec)).float().cpu()
        return means if texts is None else with_shapes(means, texts, spec.parts - 1)

    def _texts(self, inputs: Inputs) -> list[str]:
        if isinstance(inputs, np.ndarray):
            raise InputError(
                f"features '{self.spec}': the examples are an array of shape {inputs.shape}, expected texts"
            )
        return [prompt_text(each) for each in inputs]


def computing_in(dtype: str, device: str) -> torch.autocast:
    """Returns a context in which a device computes matrix products in this dtype."""
    return torch.autocast(torch.device(device).type, _DTYPES[dtype], enabled=dtype != "float32")


def _chunks(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class FileFeatures:
    """A safetensors file with one tensor `<task>.<split>` (example, width) for each examples file."""

    spec = FROM_FILE
    dtype: FeatureDtype = "float32"

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(not_found(path, "features as tensors <task>.train and <task>.test"))
        self._file = SafetensorsCheckpoint(str(path), [path], None)

    def rows(self, task: str, split: str, examples: Examples, rows: NDArray[np.int64]) -> Tensor:
        """Returns the features of some examples. Raises: InputError if the file lacks them."""
        name = f"{task}.{split}"
        if name not in self._file.tensors:
            raise InputError(
                f"{self._file.source}: has no tensor '{name}', expected [{examples.available}, width]"
            )
        shape = self._file.tensors[name].shape
        if len(shape) != 2 or shape[0] != examples.available:
            raise InputError(
                f"{self._file.source}: tensor '{name}' has the shape {list(shape)}, "
                f"expected [{examples.available}, width], a row for each example"
            )
        return self._file.read(name).float().reshape(shape)[torch.from_numpy(examples.file_rows(rows))]

    def exemplars(self, task: str, examples: Examples, rows: NDArray[np.int64]) -> Tensor:
        """Returns the features of exemplars. Raises: InputError if the file lacks them."""
        return self.rows(task, "train", examples, rows)
