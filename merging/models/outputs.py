"""The kinds of model output, and the divergence, agreement and task loss of each kind.

Of (sample, column): "classes" (one of several), "labels" (yes or no for each of several), "values" (numbers)
and "features" (an embedding). Of (sample, token, column): "tokens" (the next token at each position),
"masked-tokens" (the token at the position), "token-classes" (the class of the token) and "spans" (whether an
answer starts, and whether it ends, at the token). "boxes" are (sample, query, column): the logits of the
classes, and in the last four columns a box, in shares of the image's sides.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.merging.models.examples import Batch

OutputKind = Literal[
    "classes", "labels", "values", "features", "tokens", "masked-tokens", "token-classes", "spans", "boxes"
]  # fmt: skip
PER_TOKEN = ("tokens", "masked-tokens", "token-classes", "spans")  # of which padding has none
_DISTRIBUTIONS = ("tokens", "masked-tokens", "token-classes")  # of which each token has one

VALUE_TOLERANCE = 0.05
BOX_DEVIATION = 0.1  # the standard deviation of a box's sides, for its divergence
_BOX = 4
_MASKED = -1e4  # a logit without probability in float32, and finite in float16

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


def _declared_problem(config: Mapping[str, Any]) -> OutputKind | None:
    return _PROBLEMS.get(str(config.get("problem_type")))


def divergence(kind: OutputKind, targets: Tensor, logits: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the mean of D(targets ‖ logits) over samples in nats, a float32 scalar; 0 for no samples.

    classes: the KL divergence of the softmax; tokens: its mean over a text's tokens; spans: its mean over
    start and end, of the softmax over tokens; labels: the sum of the Bernoulli KL divergences; values:
    ½ Σ (targets − logits)², the KL divergence of Gaussians of variance 1; features: the mean of the squares;
    boxes: the mean over queries of the classes' and, with the deviation `BOX_DEVIATION`, the sides'.
    mask: (sample, token), nonzero for the tokens to use, None for all; only for tokens. Only `logits` get a
    gradient.
    """
    _check_shapes(targets, logits)
    expected = _answers(kind, targets.detach(), mask).float()  # (answer, column)
    found = _answers(kind, logits, mask).float()
    if kind == "values":
        each = (expected - found).square() / 2
    elif kind == "features":
        each = (expected - found).square() / found.shape[-1]
    elif kind == "labels":
        each = _one_answer(expected, found) + _one_answer(-expected, -found)
    elif kind == "boxes":
        sides = ((expected[:, -_BOX:] - found[:, -_BOX:]) / BOX_DEVIATION).square() / 2
        each = torch.cat([_softmax_terms(expected[:, :-_BOX], found[:, :-_BOX]), sides], 1)
    else:
        each = _softmax_terms(expected, found)
    if kind not in _DISTRIBUTIONS:
        return each.sum() / max(len(found), 1)
    return mean_of_texts(each.sum(-1), torch.ones(logits.shape[:2]) if mask is None else mask)


def own_columns(kind: OutputKind, logits: Tensor, columns: int) -> Tensor:
    """Returns the columns of a head of so many, of logits that may have more classes, of another head."""
    if kind == "boxes":  # which stand behind the classes
        return torch.cat([logits[..., : columns - _BOX], logits[..., -_BOX:]], -1)
    return logits[..., :columns]


def agreement(kind: OutputKind, targets: Tensor, logits: Tensor, mask: Tensor | None) -> tuple[int, int]:
    """Returns the number of answers that agree, and the number of answers.

    classes, tokens, spans: the largest logit is the same; labels: every logit has the same sign; values:
    every value differs by at most `VALUE_TOLERANCE`, relative to targets above 1; boxes: as for classes and
    values. Features have no answers. mask: as for `divergence`.
    """
    _check_shapes(targets, logits)
    if kind == "features":
        return 0, 0
    expected, found = _answers(kind, targets, mask).float(), _answers(kind, logits, mask).float()
    if kind == "values":
        same = _near(expected, found)
    elif kind == "labels":
        same = ((found > 0) == (expected > 0)).all(-1)
    elif kind == "boxes":
        same = found[:, :-_BOX].argmax(-1) == expected[:, :-_BOX].argmax(-1)
        same &= _near(expected[:, -_BOX:], found[:, -_BOX:])
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
    """Returns (answer, column).

    An answer is a sample, a token that the mask selects, one of a sample's two ends of a span, or a query.
    """
    if kind == "spans":
        kept = logits if mask is None else logits.masked_fill((mask == 0)[..., None], _MASKED)
        return kept.transpose(1, 2).flatten(0, 1)  # (sample · 2, token)
    if kind == "boxes":
        return logits.flatten(0, 1)
    if kind not in _DISTRIBUTIONS:
        return logits
    return logits.flatten(0, 1) if mask is None else logits[mask != 0]


def _softmax_terms(expected: Tensor, found: Tensor) -> Tensor:
    """Returns the terms of the KL divergences of the rows' softmax."""
    expected = expected.log_softmax(-1)
    return expected.exp() * (expected - found.log_softmax(-1))


def _near(expected: Tensor, found: Tensor) -> Tensor:
    """Returns the rows whose values are all near, (row,)."""
    return ((found - expected).abs() <= VALUE_TOLERANCE * expected.abs().clamp(min=1)).all(-1)


def _one_answer(expected: Tensor, found: Tensor) -> Tensor:
    """Returns the term of one of the two answers in a Bernoulli KL divergence."""
    return expected.sigmoid() * (functional.logsigmoid(expected) - functional.logsigmoid(found))


def _check_shapes(targets: Tensor, logits: Tensor) -> None:
    if targets.shape != logits.shape:
        raise ValueError(f"logits of shape {tuple(logits.shape)}, targets of shape {tuple(targets.shape)}")
