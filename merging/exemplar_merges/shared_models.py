"""The models of all tasks on one set of merged weights, and the entropy of their answers."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.merging.exemplar_merges.inputs import MergeInputs, held_out
from flexswitch.merging.exemplar_merges.task_module import Gradients, TaskModule
from flexswitch.merging.models.examples import Examples, batch_rows
from flexswitch.merging.models.labels import checked_labels
from flexswitch.merging.models.length_buckets import short_parts

_TOGETHER = 32  # examples that are measured in one batch
_PADDED_TOGETHER = 4  # examples of a batch that are padded to the longest of them


class SharedModels:
    """One model for each task, with its own head. weights: tensor → the merged weights, changed in place.

    Where entropies are learned from, every fifth example is held out, and measured instead.
    """

    def __init__(self, inputs: MergeInputs) -> None:
        base, self._inputs = inputs.model.base, inputs
        self.weights = {
            name: base.read(name).to(torch.float32).reshape(base.tensors[name].shape).to(inputs.device)
            for name in inputs.model.names
        }
        self._modules = [TaskModule(inputs, task, 0.0) for task in range(len(inputs.model.tasks))]
        for module in self._modules:
            module.share(self.weights)

    @cached_property
    def _split(self) -> list[tuple[Examples, Examples]]:
        """Each task's examples that are learned from, and those that are held out. Raises: InputError."""
        return [held_out(self._inputs.examples[task]) for task in self._inputs.model.tasks]

    @property
    def held_out(self) -> Mapping[str, int]:
        """The number of examples of each task that are held out."""
        tasks = self._inputs.model.tasks
        return {task: len(each) for task, (_, each) in zip(tasks, self._split, strict=True)}

    def entropy(self) -> float:
        """Returns the mean entropy of the answers to held-out examples, in nats, the mean over the tasks."""
        measured = [each for _, each in self._split]

        def work(task: int) -> float:
            module, examples = self._modules[task], measured[task]
            with torch.inference_mode():
                return sum(_entropies(module, examples, rows).sum().item() for rows in _parts(examples))

        totals = self._inputs.in_order(work, len(self._modules), 0)
        return float(np.mean([total / len(each) for total, each in zip(totals, measured, strict=True)]))

    def accuracy(self) -> float:
        """Returns the accuracy on all examples in %, the mean over the tasks.

        Raises: InputError where a label is none of a model's classes.
        """

        def work(task: int) -> float:
            module, examples = self._modules[task], self._inputs.examples[self._inputs.model.tasks[task]]
            correct = 0
            with torch.inference_mode():
                for rows in _parts(examples):
                    logits = module.logits(module.batch(examples, rows))
                    part = examples.take(np.array(rows, np.int64))
                    labels = checked_labels("classes", part, logits.shape[-1])
                    correct += int((logits.argmax(-1).cpu() == torch.tensor(labels)).sum())
            return 100 * correct / len(examples)

        return float(np.mean(list(self._inputs.in_order(work, len(self._modules), 0))))

    def gradients(self, step: int, batch: int, seed: int) -> tuple[float, Gradients]:
        """Returns the sum over tasks of the mean entropy of a batch, and its gradient by the merged weights.

        Raises: InputError if it is not finite.
        """
        learned = [each for each, _ in self._split]

        def work(task: int) -> tuple[float, Gradients]:
            module, examples = self._modules[task].with_gradients(), learned[task]
            loss = _entropies(module, examples, batch_rows(step, batch, len(examples), seed)).mean()
            gradients = module.gradients(loss)
            if not all(torch.isfinite(each).all() for each in (loss, *gradients.values())):
                raise InputError(
                    f"the entropy of the answers of task '{module.task}', or its gradient, is not finite in "
                    f"step {step + 1}; weights or exemplars of the task are huge"
                )
            return float(loss.detach()), gradients

        total, summed = 0.0, Gradients()
        for loss, gradients in self._inputs.in_order(work, len(self._modules), self._inputs.gradient_bytes):
            total += loss
            for name, gradient in gradients.items():
                summed[name] = summed[name].add_(gradient) if name in summed else gradient
        return total, summed


def _entropies(module: TaskModule, examples: Examples, rows: Sequence[int]) -> Tensor:
    """Returns the entropy of the answers to each example in nats, (example,), short texts first."""
    parts = short_parts(module.batch(examples, rows), _PADDED_TOGETHER)
    return torch.cat([module.entropies(part) for _, part in parts])


def _parts(examples: Examples) -> list[list[int]]:
    rows = examples.by_length(np.arange(len(examples)))
    return [rows[start : start + _TOGETHER].tolist() for start in range(0, len(rows), _TOGETHER)]
