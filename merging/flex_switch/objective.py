"""Training objectives: the fine-tuned model's answers, its features, or the labels."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from flexswitch.merging.models.adapters import Adapter
from flexswitch.merging.models.examples import Batch, Examples, Inputs
from flexswitch.merging.models.outputs import OutputKind, agreement, divergence, output_kind, task_loss

Goal = Literal["kl", "mse", "task"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, eq=False)
class Targets:
    """Examples with the fine-tuned model's answers.

    answers: one tensor per example, (column,), or (token, vocabulary) without padding, in float16.
    """

    examples: Examples
    answers: list[Tensor]
    kind: OutputKind | Literal["features"]

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True, eq=False)
class Objective:
    """`kl`: divergence of the answers; `mse`: error of the pooled features; `task`: loss on labels."""

    goal: Goal
    adapter: Adapter
    device: str
    precision: Precision = "float32"
    # A tokenizer stores padding and truncation in itself, so only one thread may call it at a time.
    _tokenizer_lock: AbstractContextManager[Any] = field(default_factory=Lock)

    def batch(self, examples: Examples, rows: Sequence[int]) -> Batch:
        """Returns the model's input tensors for some examples."""
        inputs = examples.take(np.asarray(rows, np.int64)).inputs
        with self._tokenizer_lock:
            batch = self.adapter.batch(inputs)
        return {name: value.to(self.device) for name, value in batch.items()}

    def precise(self) -> AbstractContextManager[Any]:
        """Returns the context of a step's forward pass, which sets the precision of matrix products."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the model's answers, or its features for `mse`, (sample, …)."""
        if self.goal == "mse":
            return self.adapter.features(model, batch, "pooled")
        return self.adapter.logits(model, batch)

    def loss(self, found: Tensor, targets: Targets, rows: Sequence[int], batch: Batch) -> Tensor:
        """Returns the loss, a float32 scalar. Raises: UsageError if it is not defined."""
        if self.goal == "task" and targets.kind != "features":
            labels = targets.examples.labels
            chosen = None if labels is None else torch.from_numpy(labels[list(rows)]).to(self.device)
            return task_loss(targets.kind, found, chosen, batch)
        return self.divergence(found, targets, rows, batch)

    def divergence(self, found: Tensor, targets: Targets, rows: Sequence[int], batch: Batch) -> Tensor:
        """Returns the mean divergence from the fine-tuned model."""
        expected, mask = self._expected(found, targets, rows, batch)
        if targets.kind == "features":
            return (expected - found.float()).square().mean()
        return divergence(targets.kind, expected, found, mask)

    def agreement(
        self, found: Tensor, targets: Targets, rows: Sequence[int], batch: Batch
    ) -> tuple[int, int]:
        """Returns the number of answers equal to the fine-tuned model's, and of all; (0, 0) for features."""
        if targets.kind == "features":
            return 0, 0
        expected, mask = self._expected(found, targets, rows, batch)
        return agreement(targets.kind, expected, found, mask)

    def _expected(
        self, found: Tensor, targets: Targets, rows: Sequence[int], batch: Batch
    ) -> tuple[Tensor, Tensor | None]:
        answers = [targets.answers[row].to(self.device) for row in rows]
        if targets.kind != "tokens":
            return torch.stack(answers), None
        mask = batch.get("attention_mask")
        expected = torch.zeros(found.shape, dtype=torch.float32, device=self.device)
        for place, answer in enumerate(answers):
            expected[place, slice(None) if mask is None else mask[place] != 0] = answer.float()
        return expected, mask


def joined(one: Targets, two: Targets) -> Targets:
    """Returns the examples of both targets, without labels."""
    if isinstance(one.examples.inputs, np.ndarray):
        inputs: Inputs = np.concatenate([one.examples.inputs, two.examples.inputs])
    else:
        inputs = [*one.examples.inputs, *two.examples.inputs]
    return Targets(Examples(inputs, None), one.answers + two.answers, one.kind)


def answers_of(
    objective: Objective, model: nn.Module, config: Mapping[str, Any], examples: Examples, rows: Sequence[int]
) -> Targets:
    """Returns some examples with a model's answers as targets."""
    batch = objective.batch(examples, rows)
    with torch.inference_mode():
        found = objective.outputs(model, batch)
    kind: OutputKind | Literal["features"] = "features"
    if objective.goal != "mse":
        kind = output_kind(config, found)
    answers = [answer.float().cpu().clone() for answer in found]
    if kind == "tokens":
        marks = batch.get("attention_mask", torch.ones(found.shape[:2])).cpu() != 0
        answers = [answer[mark].half() for answer, mark in zip(answers, marks, strict=True)]
    return Targets(examples.take(np.asarray(rows, np.int64)), answers, kind)
