"""Merges that learn from examples: their options, and what they are given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flexswitch.codecs.errors import UnusedOptionError, UsageError
from flexswitch.codecs.format.training_file import TrainingFile, run_identity, training_file
from flexswitch.codecs.threads import one_torch_thread
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.pairing import Selection
from flexswitch.merging.commands.reporter import Reporter
from flexswitch.merging.exemplar_merges.inputs import MergeInputs, draw_exemplars, open_adapters
from flexswitch.merging.methods.settings import check_settings, describe_settings, recorded
from flexswitch.merging.models.device import check_device
from flexswitch.merging.models.examples import Examples
from flexswitch.merging.static.merge import combined_tensors, merged_tensors, model_deltas
from flexswitch.merging.static.task_deltas import ModelDeltas
from flexswitch.merging.static.tensor_settings import MergeSettings
from flexswitch.merging.task_vectors.restore import OutputTensor
from flexswitch.merging.task_vectors.task_vector import TaskVector

PER_TASK = 256


@dataclass(frozen=True)
class ExemplarOptions:
    """The options of merges that learn from examples."""

    exemplars: str | Path | None = None
    per_task: int = PER_TASK
    adapter: str | None = None
    device: str = "cpu"
    max_length: int | None = None
    checkpoint_every: int | None = None

    def check(self, given: MergeSettings, tunes: bool) -> None:
        """Raises: UsageError where a method lacks examples, or an option would do nothing."""
        method, defaults = given.method, ExemplarOptions()
        if not method.needs_exemplars:
            used = {"per_task", "adapter", "device", "max_length"} if tunes else set()
            for name, value in vars(self).items():
                if name not in used and value != getattr(defaults, name):
                    option = name.replace("_", "-")
                    raise UnusedOptionError([option], f"{method.name} reads no examples; leave it out")
            return
        if self.exemplars is None:
            raise UsageError(f"{method.name} learns from examples: give --exemplars DIR")
        if given.overrides:
            raise UsageError(f"--set-for: {method.name} has the same settings for all tensors; use --set")
        check_settings(method, given.values)
        trains = any(setting.name == "steps" for setting in describe_settings(method))
        if self.checkpoint_every is not None and (tunes or not trains):
            why = "--tune trains each point anew" if trains else f"{method.name} has no training steps"
            raise UsageError(f"--checkpoint-every: {why}; leave it out")
        for task, weight in given.weights.items():
            if not float(weight) > 0:
                raise UsageError(f"--weight {task}={weight}: {method.name} needs weights above 0")


@dataclass(frozen=True, eq=False)
class Merger:
    """Task vectors, and how they are merged by any method and settings."""

    base: Checkpoint
    vectors: Mapping[str, TaskVector]
    selection: Selection
    options: ExemplarOptions
    jobs: int
    memory: int
    output: Path
    reporter: Reporter

    def outputs(
        self, given: MergeSettings, dtype: torch.dtype | None
    ) -> tuple[dict[str, OutputTensor], dict[str, Any], TrainingFile | None]:
        """Returns the merged tensors, what was learned of the examples, and the file of the training.

        Raises: InputError, UsageError.
        """
        base, vectors, selection, jobs, memory = (
            self.base, self.vectors, self.selection, self.jobs, self.memory,
        )  # fmt: skip
        if not given.method.needs_exemplars:
            outputs = merged_tensors(
                base, vectors, given, dtype, selection=selection, jobs=jobs, memory=memory
            )
            return outputs, {}, None
        model = model_deltas(base, vectors, selection, jobs, memory, given.method.name)
        settings = check_settings(given.method, given.values)
        inputs = self._inputs(model, given, recorded(settings))
        try:
            with one_torch_thread():  # several threads of its own would compete with those of `in_order`
                ways, report = given.method.load()(inputs, **dict(settings))
        except KeyboardInterrupt:
            if inputs.training is not None and inputs.training.path.exists():
                kept = inputs.training.path
                self.reporter.note(f"the training is kept in {kept}; the same command continues it")
            raise
        return combined_tensors(model, ways, dtype), report, inputs.training

    def _inputs(self, model: ModelDeltas, given: MergeSettings, settings: Mapping[str, Any]) -> MergeInputs:
        options = self.options
        if options.exemplars is None:
            raise ValueError("`check` refuses a method without exemplars")
        check_device(options.device)
        given.check(model.tasks, model.names)
        adapters = open_adapters(model, options.adapter, options.max_length)
        labelled = "labelled exemplars" in given.method.needs
        examples = draw_exemplars(Path(options.exemplars), model.tasks, options.per_task, labelled)
        weights = tuple(float(given.weights.get(task, 1.0)) for task in model.tasks)
        model.weights.update(dict.fromkeys(model.names, weights))
        training = None
        if options.checkpoint_every is not None:
            what = {**settings, "method": given.method.name, "max_length": options.max_length}
            run = run_identity(what, _identity(model, weights, examples))
            training = TrainingFile(training_file(self.output), options.checkpoint_every, run)
        return MergeInputs(
            model, adapters, examples, weights, options.device, training,
            self.reporter.steps, self.reporter.note,
        )  # fmt: skip


def _identity(
    model: ModelDeltas, weights: Sequence[float], examples: Mapping[str, Examples]
) -> dict[str, object]:
    """Returns what a training depends on besides its settings; files count by their sizes and times."""
    return {
        "tasks": list(model.tasks),
        "tensors": list(model.names),
        "weights": list(weights),
        "files": [vector.hints.file_stamps() for vector in model.vectors],
        "exemplars": {task: each.digest() for task, each in examples.items()},
    }
