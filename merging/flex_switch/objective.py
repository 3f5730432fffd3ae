"""Training objectives: the fine-tuned model's answers, its features, or the labels."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from flexswitch.merging.models.adapters import Adapter
from flexswitch.merging.models.examples import Batch, Examples, Inputs
from flexswitch.merging.models.language_adapters import LanguageModel
from flexswitch.merging.models.outputs import PER_TOKEN, OutputKind, agreement, divergence, task_loss
from flexswitch.merging.models.scored_tokens import scored_tokens
from flexswitch.merging.models.token_outputs import (
    Head,
    TokenOutputs,
    next_token_loss,
    token_agreement,
    token_divergence,
    token_outputs,
)

Goal = Literal["kl", "mse", "task"]
Precision = Literal["float32", "bfloat16"]
Outputs = Tensor | TokenOutputs


@dataclass(frozen=True, eq=False)
class Targets:
    """Examples with the fine-tuned model's answers.

    answers: one tensor per example: (column,); (token, vocabulary) without padding, in float16; or (token,
    width), what a language model's `head` takes for its scored tokens.
    """

    examples: Examples
    answers: list[Tensor]
    kind: OutputKind
    head: Head | None = None

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

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Returns the model's answers, (sample, column) or of the scored tokens; its features for `mse`."""
        if self.goal == "mse":
            return self.adapter.features(model, batch, "pooled")
        if isinstance(self.adapter, LanguageModel):
            return token_outputs(self.adapter, model, batch)
        return self.adapter.logits(model, batch)

    def loss(self, found: Outputs, targets: Targets, rows: Sequence[int], batch: Batch) -> Tensor:
        """Returns the loss, a float32 scalar. Raises: UsageError if it is not defined."""
        if self.goal != "task":
            return self.divergence(found, targets, rows, batch)
        if isinstance(found, TokenOutputs):
            return next_token_loss(found, batch)
        labels = targets.examples.labels if targets.kind == "classes" else None
        own = None if labels is None else torch.tensor([labels[row] for row in rows]).to(self.device)
        return task_loss(targets.kind, found, own, batch)

    def divergence(self, found: Outputs, targets: Targets, rows: Sequence[int], batch: Batch) -> Tensor:
        """Returns the mean divergence from the fine-tuned model."""
        if isinstance(found, TokenOutputs):
            return token_divergence(self._expected_outputs(targets, rows), found, batch)
        expected, mask = self._expected(found, targets, rows, batch)
        return divergence(targets.kind, expected, found, mask)

    def agreement(
        self, found: Outputs, targets: Targets, rows: Sequence[int], batch: Batch
    ) -> tuple[int, int]:
        """Returns the number of answers equal to the fine-tuned model's, and of all; (0, 0) for features."""
        if isinstance(found, TokenOutputs):
            return token_agreement(self._expected_outputs(targets, rows), found)
        expected, mask = self._expected(found, targets, rows, batch)
        return agreement(targets.kind, expected, found, mask)

    def _expected_outputs(self, targets: Targets, rows: Sequence[int]) -> TokenOutputs:
        if targets.head is None:
            raise ValueError("the outputs of a language model need its head")
        return TokenOutputs(torch.cat([targets.answers[row].to(self.device) for row in rows]), targets.head)

    def _expected(
        self, found: Tensor, targets: Targets, rows: Sequence[int], batch: Batch
    ) -> tuple[Tensor, Tensor | None]:
        answers = [targets.answers[row].to(self.device) for row in rows]
        if targets.kind not in PER_TOKEN:
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
    return Targets(Examples(inputs, None), one.answers + two.answers, one.kind, one.head)


def answers_of(
    objective: Objective,
    model: nn.Module,
    kind_of_answers: Callable[[Tensor], OutputKind],
    examples: Examples,
    rows: Sequence[int],
) -> Targets:
    """Returns some examples with a model's answers as targets. kind_of_answers: by their logits."""
    batch, own = objective.batch(examples, rows), examples.take(np.asarray(rows, np.int64))
    with torch.inference_mode():
        found = objective.outputs(model, batch)
    if isinstance(found, TokenOutputs):
        counts = scored_tokens(batch).sum(1).tolist()
        return Targets(own, list(torch.split(found.states.cpu().clone(), counts)), "tokens", found.head)
    kind: OutputKind = "features" if objective.goal == "mse" else kind_of_answers(found)
    answers = [answer.float().cpu().clone() for answer in found]
    if kind in PER_TOKEN:
        given = batch.get("attention_mask")
        marks = torch.ones(found.shape[:2], dtype=torch.bool) if given is None else given.cpu() != 0
        answers = [answer[mark].half() for answer, mark in zip(answers, marks, strict=True)]
    return Targets(own, answers, kind)
