"""The models and test examples of a zoo's tasks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.config import read_config
from flexswitch.merging.models.adapters import Adapter
from flexswitch.merging.models.examples import Batch, Examples, check_labels
from flexswitch.merging.models.loading import load_weights, names_inside
from flexswitch.merging.models.outputs import OutputKind, output_kind
from flexswitch.merging.task_vectors.raw_tensors import to_torch
from flexswitch.merging.task_vectors.restore import OutputTensor, restored_tensors
from flexswitch.merging.task_vectors.task_vector import TaskVector

_BATCH = 64


@dataclass
class TaskModels:
    """The base, and a model and labelled examples for each task."""

    base: Checkpoint
    adapter: Adapter
    vectors: Mapping[str, TaskVector]
    examples: Mapping[str, Examples]
    device: str = "cpu"
    models: dict[str, nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for task, vector in self.vectors.items():
            self.models[task] = self.adapter.model(vector.model.config, vector.extras)
            self.set_weights(task, vector, 0.0)
            self.models[task].to(self.device)

    def warm_up(self) -> None:
        """Runs one sample of each task, so that the first call is not timed.

        Raises: InputError if a model's outputs are not classes, or a label is none of them.
        """
        for task, model in self.models.items():
            _, batch = next(self.batches_of(task, np.arange(1)))
            with torch.inference_mode():
                logits = self.adapter.logits(model, batch)
            vector = self.vectors[task]
            check_classes(output_kind(read_config(self.base) | vector.model.config, logits), task, vector)
            check_labels(self.examples[task], logits.shape[-1])

    def set_weights(self, task: str, vector: TaskVector, lambda_: float = 1.0) -> None:
        """Loads θ + λ·τ and the vector's head into a task's model; λ = 0 gives the base with that head."""
        self._load(task, restored_tensors(self.base, vector, lambda_, torch.float32), vector.source)

    def set_merged(self, task: str, merged: Mapping[str, Tensor]) -> None:
        """Loads merged weights (base name → tensor) and the task's own head into its model."""
        vector = self.vectors[task]
        state = {vector.model.finetuned_name(name): tensor for name, tensor in merged.items()}
        state |= {name: to_torch(vector.extra(name)) for name in vector.extras}
        self._load_state(task, state, vector.source)

    def extra_names(self, task: str) -> dict[str, str]:
        """Returns stored name → name in the model for the task's own tensors that its model has."""
        named = {self.adapter.parameter_name(name): name for name in self.vectors[task].extras}
        inside = names_inside(self.models[task], list(named))
        return {named[name]: own for name, own in inside.items()}

    def batches(self, task: str) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yields (rows, batch) for all examples of a task."""
        return self.batches_of(task, np.arange(len(self.examples[task])))

    def batches_of(self, task: str, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yields (rows, batch) for some examples of a task, sorted by length."""
        rows = self.examples[task].by_length(rows)
        for start in range(0, len(rows), _BATCH):
            chunk = rows[start : start + _BATCH]
            batch = self.adapter.batch(self.examples[task].take(chunk).inputs)
            yield chunk, {name: value.to(self.device) for name, value in batch.items()}

    def _load(self, task: str, outputs: Mapping[str, OutputTensor], source: str) -> None:
        self._load_state(task, {name: output.whole() for name, output in outputs.items()}, source)

    def _load_state(self, task: str, state: Mapping[str, Tensor], source: str) -> None:
        named = {self.adapter.parameter_name(name): tensor for name, tensor in state.items()}
        load_weights(self.models[task], named, source)


def check_classes(kind: OutputKind | None, task: str, vector: TaskVector) -> None:
    """Raises: InputError if a task's outputs are tokens or values, which have no accuracy."""
    if kind not in ("tokens", "values"):
        return
    found = "a language model" if kind == "tokens" else "a regression model"
    raise InputError(
        f"{vector.source}: is {found}, but eval needs a classifier; restore the model and measure "
        f"it yourself: flexswitch merge {vector.source} --base BASE -o OUT --task {task}"
    )
