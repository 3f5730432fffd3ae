"""What kind of output a model gives, and for each kind: divergence, agreement and task loss.

The kinds: "classes" (one answer among several), "labels" (a yes or no for each), "values" (numbers), all
three (sample, column); and "tokens" (the next token at each token), (sample, token, vocabulary).
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.merging.checkpoints.architecture import HEAD_WEIGHT
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.models.examples import Batch

OutputKind = Literal["classes", "labels", "values", "tokens"]

VALUE_TOLERANCE = 0.05

_PROBLEMS: dict[str, OutputKind] = {"regression": "values", "multi_label_classification": "labels"}


def output_kind(config: Mapping[str, Any], logits: Tensor) -> OutputKind:
    """Returns what logits stand for; config: the base's config.json with the task's changes.

    Raises: InputError where they have neither two nor three dimensions.
    """
    if logits.ndim == 3:
        return "tokens"
    if logits.ndim != 2:
        raise InputError(
            f"the logits have the shape {tuple(logits.shape)}, "
            "expected (sample, class) or (sample, token, vocabulary)"
        )
    return _declared_problem(config) or ("values" if logits.shape[1] == 1 else "classes")


def declared_kind(
    adapter: str | None, config: Mapping[str, Any], extras: Mapping[str, TensorInfo]
) -> OutputKind | None:
    """Returns what a task's adapter, config and own tensors say of its output, None where they leave it open.

    The names of classes in an encoder's config.json say nothing: its head is another.
    """
    if adapter == "hf-causal-lm":
        return "tokens"
    columns = None
    if adapter == "hf-encoder" and HEAD_WEIGHT in extras:
        columns = extras[HEAD_WEIGHT].shape[0]
    elif adapter in ("hf-sequence-classification", "hf-image-classification"):
        names = config.get("id2label")
        columns = len(names) if isinstance(names, Mapping) else config.get("num_labels")
    return _declared_problem(config) or ("values" if columns == 1 else None)


def _declared_problem(config: Mapping[str, Any]) -> OutputKind | None:
    return _PROBLEMS.get(str(config.get("problem_type")))


def divergence(kind: OutputKind, teacher: Tensor, student: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the mean of D(teacher ‖ student) in nats over samples: a scalar, float32.

    classes: KL of the softmax; tokens: a text's mean of that over its tokens; labels: the sum of the
    Bernoullis' KL; values: ½ Σ (teacher − student)², the KL of Gaussians of unit variance. mask: (sample,
    token), which tokens count; all without it, and of no meaning for the other kinds. Differentiable in
    `student` alone; 0 where nothing counts.
    """
    _check_shapes(teacher, student)
    expected = _answers(kind, teacher.detach(), mask).float()  # (answer, column)
    found = _answers(kind, student, mask).float()
    if kind == "values":
        each = (expected - found).square() / 2
    elif kind == "labels":
        each = _one_answer(expected, found) + _one_answer(-expected, -found)
    else:
        expected = expected.log_softmax(-1)
        each = expected.exp() * (expected - found.log_softmax(-1))
    if kind != "tokens":
        return each.sum() / max(len(found), 1)
    return _mean_of_texts(each.sum(-1), torch.ones(student.shape[:2]) if mask is None else mask)


def agreement(kind: OutputKind, teacher: Tensor, student: Tensor, mask: Tensor | None) -> tuple[int, int]:
    """Returns how many answers agree, and how many there are; counts of batches add up.

    classes, tokens: the same largest logit; labels: the same sign of every logit; values: every value within
    `VALUE_TOLERANCE` of the teacher's, relative to it where it is above 1. mask: as for `divergence`.
    """
    _check_shapes(teacher, student)
    expected, found = _answers(kind, teacher, mask).float(), _answers(kind, student, mask).float()
    if kind == "values":
        same = ((found - expected).abs() <= VALUE_TOLERANCE * expected.abs().clamp(min=1)).all(-1)
    elif kind == "labels":
        same = ((found > 0) == (expected > 0)).all(-1)
    else:
        same = found.argmax(-1) == expected.argmax(-1)
    return int(same.sum()), len(same)


def task_loss(kind: OutputKind, logits: Tensor, labels: Tensor | None, batch: Batch) -> Tensor:
    """Returns the mean cross entropy in nats over samples: a scalar, float32.

    classes: of the labels, (sample,) int64; tokens: a text's mean over its next tokens, labels are not used,
    and 0 of a text that has fewer than two. Raises: UsageError where there are no labels, or on other kinds.
    """
    if kind == "tokens":
        return _next_token_loss(logits, batch["input_ids"], batch.get("attention_mask"))
    if kind != "classes":
        raise UsageError(
            f"the model gives {kind}, and the loss on labels is defined for classes and tokens; "
            "take its divergence from the fine-tuned model"
        )
    if labels is None:
        raise UsageError(
            "the loss on labels takes labelled examples; give some, or take the divergence from the "
            "fine-tuned model"
        )
    return functional.cross_entropy(logits.float(), labels)


def _next_token_loss(logits: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
    targets, before = tokens[:, 1:], logits[:, :-1]  # (sample, token - 1), (sample, token - 1, vocabulary)
    marks = torch.ones_like(tokens) if mask is None else mask
    counted = (marks[:, 1:] != 0) & (marks[:, :-1] != 0)
    each = functional.cross_entropy(before[counted].float(), targets[counted], reduction="none")
    return _mean_of_texts(each, counted)


def _mean_of_texts(values: Tensor, marks: Tensor) -> Tensor:
    """Returns the mean of each text's mean, so that texts can be taken together in any way; 0 without any.

    values: (token,) of the tokens that marks (sample, token) count, text by text.
    """
    counts = (marks != 0).sum(1).to(values.device)
    shares = (1 / counts.clamp(min=1)).repeat_interleave(counts)
    return (values * shares).sum() / max(len(counts), 1)


def _answers(kind: OutputKind, logits: Tensor, mask: Tensor | None) -> Tensor:
    """Returns (answer, column): the samples, or the tokens that count."""
    if kind != "tokens":
        return logits
    return logits.flatten(0, 1) if mask is None else logits[mask != 0]


def _one_answer(expected: Tensor, found: Tensor) -> Tensor:
    """Returns the part that one of a Bernoulli's two answers has in the KL."""
    return expected.sigmoid() * (functional.logsigmoid(expected) - functional.logsigmoid(found))


def _check_shapes(teacher: Tensor, student: Tensor) -> None:
    if teacher.shape != student.shape:
        raise ValueError(f"teacher logits {tuple(teacher.shape)}, student logits {tuple(student.shape)}")
