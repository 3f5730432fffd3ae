"""The kinds of model output, and the divergence, agreement and task loss of each kind.

The kinds are "classes" (one of several), "labels" (yes or no for each of several) and "values" (numbers),
all (sample, column), and "tokens" (the next token at each position), (sample, token, vocabulary).
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
    """Returns the kind of a model's logits.

    config: the base's config.json with the task's changes. Raises: InputError unless the logits have two or
    three dimensions.
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
    """Returns the output kind that a task's adapter, config and own tensors declare, if any.

    The class names in an encoder's config.json are not used, because they do not belong to its head.
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


def divergence(kind: OutputKind, targets: Tensor, logits: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the mean of D(targets ‖ logits) over samples in nats, a float32 scalar; 0 for no samples.

    classes: the KL divergence of the softmax; tokens: its mean over a text's tokens; labels: the sum of the
    Bernoulli KL divergences; values: ½ Σ (targets − logits)², the KL divergence of Gaussians of variance 1.
    mask: (sample, token), nonzero for the tokens to use, None for all; only for tokens. Only `logits` get a
    gradient.
    """
    _check_shapes(targets, logits)
    expected = _answers(kind, targets.detach(), mask).float()  # (answer, column)
    found = _answers(kind, logits, mask).float()
    if kind == "values":
        each = (expected - found).square() / 2
    elif kind == "labels":
        each = _one_answer(expected, found) + _one_answer(-expected, -found)
    else:
        expected = expected.log_softmax(-1)
        each = expected.exp() * (expected - found.log_softmax(-1))
    if kind != "tokens":
        return each.sum() / max(len(found), 1)
    return mean_of_texts(each.sum(-1), torch.ones(logits.shape[:2]) if mask is None else mask)


def agreement(kind: OutputKind, targets: Tensor, logits: Tensor, mask: Tensor | None) -> tuple[int, int]:
    """Returns the number of answers that agree, and the number of answers.

    classes, tokens: the largest logit is the same; labels: every logit has the same sign; values: every value
    differs by at most `VALUE_TOLERANCE`, relative to targets above 1. mask: as for `divergence`.
    """
    _check_shapes(targets, logits)
    expected, found = _answers(kind, targets, mask).float(), _answers(kind, logits, mask).float()
    if kind == "values":
        same = ((found - expected).abs() <= VALUE_TOLERANCE * expected.abs().clamp(min=1)).all(-1)
    elif kind == "labels":
        same = ((found > 0) == (expected > 0)).all(-1)
    else:
        same = found.argmax(-1) == expected.argmax(-1)
    return int(same.sum()), len(same)


def task_loss(kind: OutputKind, logits: Tensor, labels: Tensor | None, batch: Batch) -> Tensor:
    """Returns the mean cross entropy over samples in nats, a float32 scalar.

    classes: of the labels, (sample,) int64; tokens: the mean over a text's next tokens, 0 for a text of fewer
    than two. Raises: UsageError if the labels are missing, or on other kinds.
    """
    if kind == "tokens":
        return _next_token_loss(logits, batch["input_ids"], batch.get("attention_mask"))
    if kind != "classes":
        raise UsageError(
            f"the model's outputs are {kind}, but the loss on labels needs classes or tokens; "
            "use the divergence from the fine-tuned model"
        )
    if labels is None:
        raise UsageError(
            "the loss on labels needs labelled examples; give some, or use the divergence from the "
            "fine-tuned model"
        )
    return functional.cross_entropy(logits.float(), labels)


def _next_token_loss(logits: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
    following, before = tokens[:, 1:], logits[:, :-1]  # (sample, token - 1), (sample, token - 1, vocabulary)
    marks = torch.ones_like(tokens) if mask is None else mask
    counted = (marks[:, 1:] != 0) & (marks[:, :-1] != 0)
    each = functional.cross_entropy(before[counted].float(), following[counted], reduction="none")
    return mean_of_texts(each, counted)


def mean_of_texts(values: Tensor, marks: Tensor) -> Tensor:
    """Returns the mean over texts of each text's mean, 0 for no texts.

    values: (token,), of the tokens whose marks (sample, token) are nonzero, text by text.
    """
    counts = (marks != 0).sum(1).to(values.device)
    shares = (1 / counts.clamp(min=1)).repeat_interleave(counts)
    return (values * shares).sum() / max(len(counts), 1)


def _answers(kind: OutputKind, logits: Tensor, mask: Tensor | None) -> Tensor:
    """Returns (answer, column); an answer is a sample, or a token that the mask selects."""
    if kind != "tokens":
        return logits
    return logits.flatten(0, 1) if mask is None else logits[mask != 0]


def _one_answer(expected: Tensor, found: Tensor) -> Tensor:
    """Returns the term of one of the two answers in a Bernoulli KL divergence."""
    return expected.sigmoid() * (functional.logsigmoid(expected) - functional.logsigmoid(found))


def _check_shapes(targets: Tensor, logits: Tensor) -> None:
    if targets.shape != logits.shape:
        raise ValueError(f"logits of shape {tuple(logits.shape)}, targets of shape {tuple(targets.shape)}")
