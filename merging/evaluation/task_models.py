"""The models and test examples of a zoo's tasks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.config import read_config
from flexswitch.merging.evaluation.measures import Measure, measure_of
from flexswitch.merging.evaluation.metrics import Unit, common_unit
from flexswitch.merging.models.adapters import Adapter, kind_of
from flexswitch.merging.models.examples import Batch, Examples
from flexswitch.merging.models.head_files import Heads
from flexswitch.merging.models.language_adapters import LanguageModel
from flexswitch.merging.models.loading import load_weights
from flexswitch.merging.models.loading_names import names_inside
from flexswitch.merging.task_vectors.raw_tensors import to_torch
from flexswitch.merging.task_vectors.restore import OutputTensor, restored_tensors
from flexswitch.merging.task_vectors.task_vector import TaskVector

_BATCH = 64
_MOST_LOGITS = 1 << 25


@dataclass
class TaskModels:
    """The base, and a model and labelled examples for each task.

    metrics: task → the name of its metric, for tasks that do not take their kind's default; heads: those that
    files hold, which take the place of the tasks' own.
    """

    base: Checkpoint
    adapter: Adapter
    vectors: Mapping[str, TaskVector]
    examples: Mapping[str, Examples]
    device: str = "cpu"
    metrics: Mapping[str, str] = field(default_factory=dict)
    heads: Heads = field(default_factory=dict)
    models: dict[str, nn.Module] = field(default_factory=dict)
    measures: dict[str, Measure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for task, vector in self.vectors.items():
            self.models[task] = self.adapter.model(vector.model.config, self.extras(task))
            self.set_weights(task, vector, 0.0)
            self.models[task].to(self.device)

    def warm_up(self) -> None:
        """Runs one sample of each task, so that the first call is not timed, and takes the tasks' measures.

        Raises: InputError if a label does not fit a model's outputs; UsageError.
        """
        for task, model in self.models.items():
            _, batch = next(self.batches_of(task, np.arange(1)))
            with torch.inference_mode():
                logits = self.adapter.logits(model, batch)
            config = read_config(self.base) | self.vectors[task].model.config
            kind = kind_of(self.adapter, config, self.extras(task), logits)
            wanted = self.metrics.get(task)
            self.measures[task] = measure_of(task, kind, logits, self.examples[task], wanted)

    @property
    def unit(self) -> Unit | None:
        """The unit of the tasks' values, None where they have several."""
        return common_unit(measure.metric for measure in self.measures.values())

    @property
    def batch_size(self) -> int:
        """The number of samples whose logits are computed at once: few texts have logits over many words."""
        if not isinstance(self.adapter, LanguageModel):
            return _BATCH
        longest = max(len(text) for each in self.examples.values() for text in each.inputs)
        tokens = max(1, min(longest, self.adapter.max_length))
        return max(1, min(_BATCH, _MOST_LOGITS // (tokens * self.adapter.words)))

    def set_weights(self, task: str, vector: TaskVector, lambda_: float = 1.0) -> None:
        """Loads θ + λ·τ and the vector's head into a task's model; λ = 0 gives the base with that head."""
        self._load(task, restored_tensors(self.base, vector, lambda_, torch.float32), vector.source)

    def set_merged(self, task: str, merged: Mapping[str, Tensor]) -> None:
        """Loads merged weights (base name → tensor) and the task's own head into its model."""
        vector = self.vectors[task]
        state = {vector.model.finetuned_name(name): tensor for name, tensor in merged.items()}
        state |= {name: to_torch(vector.extra(name)) for name in vector.extras}
        self._load_state(task, state, vector.source)

    def extras(self, task: str) -> dict[str, TensorInfo]:
        """Returns the task's own tensors, a head of a file among them."""
        given = self.heads.get(task, {})
        infos = {name: TensorInfo("F32", tuple(tensor.shape)) for name, tensor in given.items()}
        return {**self.vectors[task].extras, **infos}

    def extra_names(self, task: str) -> dict[str, str]:
        """Returns stored name → name in the model for the task's own tensors that its model has."""
        named = {self.adapter.parameter_name(name): name for name in self.extras(task)}
        inside = names_inside(self.models[task], list(named))
        return {named[name]: own for name, own in inside.items()}

    def batches(self, task: str) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yields (rows, batch) for all examples of a task."""
        return self.batches_of(task, np.arange(len(self.examples[task])))

    def batches_of(self, task: str, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yields (rows, batch) for some examples of a task, sorted by length."""
        rows = self.examples[task].by_length(rows)
        size = self.batch_size
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            batch = self.adapter.batch(self.examples[task].take(chunk).inputs)
            yield chunk, {name: value.to(self.device) for name, value in batch.items()}

    def _load(self, task: str, outputs: Mapping[str, OutputTensor], source: str) -> None:
        self._load_state(task, {name: output.whole() for name, output in outputs.items()}, source)

    def _load_state(self, task: str, state: Mapping[str, Tensor], source: str) -> None:
        whole = {**state, **self.heads.get(task, {})}
        named = {self.adapter.parameter_name(name): tensor for name, tensor in whole.items()}
        load_weights(self.models[task], named, source)
