"""Output kinds, and divergence, agreement and loss compared with numpy in float64."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from support.checkpoints import message

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.merging.models.outputs import (
    agreement,
    divergence,
    output_kind,
    task_loss,
)

KINDS = (
    "classes",
    "labels",
    "values",
    "tokens",
    "features",
    "masked-tokens",
    "token-classes",
    "spans",
    "boxes",
)
PER_TOKEN = ("tokens", "masked-tokens", "token-classes")
MULTI = {"problem_type": "multi_label_classification"}
REGRESSION = {"problem_type": "regression"}


def logits_of(kind, seed, size=2.0):
    """Returns the logits of 5 samples, with 6 columns, and 4 tokens or queries where the kind has them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (5, 4, 6) if kind in (*PER_TOKEN, "boxes") else (5, 4, 2) if kind == "spans" else (5, 6)
    return size * torch.randn(shape, generator=generator)


MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]])


def plain(kind, logits, mask=None):
    """Returns (answer, column) in float64."""
    array = logits.detach().double().numpy()
    if kind == "spans":
        return array.transpose(0, 2, 1).reshape(10, 4)
    if kind == "boxes":
        return array.reshape(20, 6)
    if kind not in PER_TOKEN:
        return array
    marks = np.ones(array.shape[:2], bool) if mask is None else mask.numpy().astype(bool)
    return array[marks]


def log_softmax(array):
    shifted = array - array.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def reference(kind, targets, logits):
    """Returns each answer's D(targets ‖ logits)."""
    if kind == "values":
        return 0.5 * ((targets - logits) ** 2).sum(-1)
    if kind == "features":
        return ((targets - logits) ** 2).mean(-1)
    if kind == "boxes":
        sides = 0.5 * (((targets - logits)[:, 2:] / 0.1) ** 2).sum(-1)
        return reference("classes", targets[:, :2], logits[:, :2]) + sides
    if kind == "labels":
        p, q = 1 / (1 + np.exp(-targets)), 1 / (1 + np.exp(-logits))
        return (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(-1)
    p, q = log_softmax(targets), log_softmax(logits)
    return (np.exp(p) * (p - q)).sum(-1)


# --- the kind ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "shape", "kind"),
    [
        ({}, (5, 3), "classes"),
        ({"problem_type": "single_label_classification"}, (5, 3), "classes"),
        ({"problem_type": None}, (5, 3), "classes"),
        ({"problem_type": ["regression"]}, (5, 3), "classes"),
        ({"id2label": {"0": "a"}}, (5, 3), "classes"),
        ({}, (5, 1), "values"),
        (REGRESSION, (5, 1), "values"),
        (REGRESSION, (5, 3), "values"),
        (MULTI, (5, 3), "labels"),
        (MULTI, (5, 1), "labels"),
        ({}, (5, 4, 30), "tokens"),
        (REGRESSION, (5, 4, 30), "tokens"),
    ],
)
def test_the_kind_follows_from_the_shape_and_the_config(config, shape, kind):
    assert output_kind(config, torch.zeros(shape)) == kind


@pytest.mark.parametrize("shape", [(5,), (5, 4, 3, 2)])
def test_logits_of_another_shape_are_refused(shape):
    assert message(InputError, lambda: output_kind({}, torch.zeros(shape))) == (
        f"the logits have the shape {shape}, expected (sample, class) or (sample, token, vocabulary)"
    )


# --- divergence -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_divergence_is_the_mean_over_answers(kind):
    targets, logits = logits_of(kind, 1), logits_of(kind, 2)
    found = divergence(kind, targets, logits, None)
    assert (found.dtype, found.shape) == (torch.float32, ())
    expected = reference(kind, plain(kind, targets), plain(kind, logits)).mean()
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert found.item() > 0.1


def mean_of_texts(values, marks):
    """Returns the mean over texts of each one's mean, 0 for one without values."""
    starts = np.cumsum([0, *marks.sum(1).tolist()])
    means = [np.mean(values[start:stop]) if stop > start else 0.0 for start, stop in pairwise(starts)]
    assert starts[-1] == len(values)
    return np.mean(means)


def test_only_tokens_that_the_mask_selects_are_used():
    targets, logits = logits_of("tokens", 1), logits_of("tokens", 2)
    each = reference("tokens", plain("tokens", targets, MASK), plain("tokens", logits, MASK))
    expected = mean_of_texts(each, MASK)
    assert len(each) == MASK.sum() == 10
    assert abs(expected - each.mean()) > 0.01
    for mask in (MASK, MASK.bool(), MASK.float()):
        assert divergence("tokens", targets, logits, mask).item() == pytest.approx(expected, rel=1e-5)
    logits[MASK == 0] = float("nan")
    assert divergence("tokens", targets, logits, MASK).item() == pytest.approx(expected, rel=1e-5)


def test_the_mean_does_not_depend_on_how_texts_are_batched():
    """A training step batches texts of similar length; its gradient must not depend on the batches."""
    targets, logits = logits_of("tokens", 1), logits_of("tokens", 2)
    tokens = torch.randint(0, 6, (5, 4), generator=torch.Generator().manual_seed(3))

    def both(rows):
        batch = {"input_ids": tokens[rows], "attention_mask": MASK[rows]}
        return (
            divergence("tokens", targets[rows], logits[rows], MASK[rows]),
            task_loss("tokens", logits[rows], None, batch),
        )

    whole = both([0, 1, 2, 3, 4])
    for parts in ([[0], [1], [2], [3], [4]], [[4, 0], [1, 3, 2]]):
        found = [sum(len(rows) * both(rows)[n] for rows in parts) / 5 for n in range(2)]
        torch.testing.assert_close(tuple(found), whole)


@pytest.mark.parametrize("kind", ["classes", "labels", "values"])
def test_the_mask_is_ignored_if_a_sample_has_one_answer(kind):
    targets, logits = logits_of(kind, 1), logits_of(kind, 2)
    assert divergence(kind, targets, logits, MASK) == divergence(kind, targets, logits, None)
    assert agreement(kind, targets, logits, MASK) == agreement(kind, targets, logits, None)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_logits_have_no_divergence(kind):
    logits = logits_of(kind, 1)
    assert abs(divergence(kind, logits, logits.clone(), None).item()) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_logits_get_a_gradient_and_it_leads_towards_the_targets(kind):
    targets = logits_of(kind, 1).requires_grad_()
    logits = logits_of(kind, 2).requires_grad_()
    before = divergence(kind, targets, logits, MASK if kind == "tokens" else None)
    before.backward()
    assert targets.grad is None
    step = logits.detach() - 0.01 * logits.grad
    after = divergence(kind, targets, step, MASK if kind == "tokens" else None)
    assert after < before.detach()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_equals_the_references(kind):
    targets, logits = logits_of(kind, 1), logits_of(kind, 2).requires_grad_()
    divergence(kind, targets, logits, None).backward()
    base = plain(kind, logits)
    found = plain(kind, logits.grad)
    expected = np.zeros_like(base)
    for place in np.ndindex(*base.shape):
        pair = []
        for step in (1e-5, -1e-5):
            moved = base.copy()
            moved[place] += step
            pair.append(reference(kind, plain(kind, targets), moved).mean())
        expected[place] = (pair[0] - pair[1]) / 2e-5
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["classes", "labels", "tokens"])
def test_logits_that_are_far_apart_have_a_finite_divergence(kind):
    targets, logits = logits_of(kind, 1, size=200.0), logits_of(kind, 2, size=200.0)
    found = divergence(kind, targets, logits.requires_grad_(), None)
    found.backward()
    assert found.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_logits_are_compared_in_float32(kind):
    targets, logits = logits_of(kind, 1).bfloat16(), logits_of(kind, 2).bfloat16()
    found = divergence(kind, targets, logits, None)
    assert found.dtype == torch.float32
    expected = reference(kind, plain(kind, targets), plain(kind, logits)).mean()
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_a_mask_that_selects_no_token_gives_no_divergence_and_no_answer():
    targets, logits = logits_of("tokens", 1), logits_of("tokens", 2).requires_grad_()
    nothing = torch.zeros_like(MASK)
    found = divergence("tokens", targets, logits, nothing)
    found.backward()
    assert (found.item(), logits.grad.abs().max().item()) == (0, 0)
    assert agreement("tokens", targets, logits, nothing) == (0, 0)


def test_logits_and_targets_of_different_shapes_raise_value_error():
    for function in (divergence, agreement):
        with pytest.raises(ValueError, match=r"logits of shape \(5, 1\), targets of shape \(5, 6\)"):
            function("values", torch.zeros(5, 6), torch.zeros(5, 1), None)


# --- agreement --------------------------------------------------------------------------------------------


def test_classes_agree_by_their_largest_logit():
    targets = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    logits = torch.tensor([[0.0, 9.0, 8.0], [0.0, 1.0, 0.0], [-3.0, -2.0, -1.0]])
    assert agreement("classes", targets, logits, None) == (2, 3)


def test_tokens_that_the_mask_selects_are_compared_one_by_one():
    targets, logits = logits_of("tokens", 1), logits_of("tokens", 2)
    same = targets.argmax(-1) == logits.argmax(-1)
    assert agreement("tokens", targets, logits, None) == (int(same.sum()), 20)
    assert agreement("tokens", targets, logits, MASK) == (int((same & (MASK == 1)).sum()), 10)


def test_labels_agree_if_every_sign_agrees():
    targets = torch.tensor([[1.0, -2.0], [1.0, -2.0], [-1.0, -1.0], [0.0, 1.0]])
    logits = torch.tensor([[0.1, -0.1], [0.1, 0.1], [-9.0, -9.0], [-1.0, 3.0]])
    assert agreement("labels", targets, logits, None) == (3, 4)


def test_values_agree_if_all_are_near_the_targets():
    targets = torch.tensor([[0.5, 0.0], [0.5, 0.0], [-100.0, 0.0], [100.0, 0.0], [0.0, 1.0]])
    off = torch.tensor([[0.04, -0.04], [0.04, 0.06], [4.9, 0.0], [-5.1, 0.0], [0.0, 0.0]])
    assert agreement("values", targets, targets + off, None) == (3, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_counts_of_batches_add_up(kind):
    targets, logits = logits_of(kind, 1), logits_of(kind, 1) + logits_of(kind, 2, size=0.3)
    whole = agreement(kind, targets, logits, None)
    parts = [agreement(kind, targets[rows], logits[rows], None) for rows in (slice(0, 2), slice(2, 5))]
    assert whole == tuple(map(sum, zip(*parts, strict=True)))


def test_spans_agree_end_by_end_and_padding_is_no_end():
    targets, logits = logits_of("spans", 1), logits_of("spans", 2)
    kept = MASK[:4]
    for row, marks in enumerate(kept):
        logits[row, marks == 0] = 99.0
    own = [[each[row][marks == 1].argmax(0) for row, marks in enumerate(kept)] for each in (targets, logits)]
    same = sum(int((one == two).sum()) for one, two in zip(*own, strict=True))
    assert agreement("spans", targets[:4], logits[:4], kept) == (same, 8)


def test_boxes_agree_by_class_and_sides():
    targets = torch.tensor([[[2.0, 1.0, 0.5, 0.5, 0.2, 0.2]] * 3])
    logits = targets.clone()
    logits[0, 1, 0] = 0.0  # another class
    logits[0, 2, 4] = 0.3  # another width
    assert agreement("boxes", targets, logits, None) == (1, 3)


def test_features_have_no_answers():
    assert agreement("features", torch.zeros(2, 3), torch.ones(2, 3), None) == (0, 0)


# --- loss -------------------------------------------------------------------------------------------------


def test_the_loss_of_classes_is_the_cross_entropy_of_the_labels():
    logits, labels = logits_of("classes", 1), torch.tensor([0, 5, 2, 2, 1])
    expected = -log_softmax(plain("classes", logits))[np.arange(5), labels.numpy()].mean()
    found = task_loss("classes", logits, labels, {})
    assert (found.dtype, found.shape) == (torch.float32, ())
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("padded", [True, False])
def test_the_loss_of_tokens_is_the_cross_entropy_of_the_next_ones(padded):
    logits = logits_of("tokens", 1).requires_grad_()
    tokens = torch.randint(0, 6, (5, 4), generator=torch.Generator().manual_seed(3))
    logs = log_softmax(logits.detach().double().numpy())
    each = [
        -logs[sample, place, tokens[sample, place + 1]]
        for sample in range(5)
        for place in range(3)
        if not padded or MASK[sample, place + 1]
    ]
    assert len(each) == (6 if padded else 15)
    counted = MASK[:, 1:] if padded else torch.ones(5, 3, dtype=torch.int64)
    batch = {"input_ids": tokens} | ({"attention_mask": MASK} if padded else {})
    found = task_loss("tokens", logits, None, batch)
    assert found.item() == pytest.approx(mean_of_texts(each, counted), rel=1e-5)
    found.backward()
    assert (logits.grad[:, -1] == 0).all()


def test_padding_on_the_left_has_no_loss():
    logits, tokens = logits_of("tokens", 1), torch.zeros(5, 4, dtype=torch.int64)
    mask = torch.tensor([[0, 0, 1, 1]] * 5)
    expected = -log_softmax(plain("tokens", logits).reshape(5, 4, 6))[:, 2, 0].mean()
    found = task_loss("tokens", logits, None, {"input_ids": tokens, "attention_mask": mask})
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_texts_of_one_token_have_no_loss():
    batch = {"input_ids": torch.zeros(5, 1, dtype=torch.int64)}
    assert task_loss("tokens", logits_of("tokens", 1)[:, :1], None, batch).item() == 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("classes", "tokens")])
def test_other_kinds_have_no_loss_on_labels(kind):
    assert message(UsageError, lambda: task_loss(kind, logits_of(kind, 1), None, {})) == (
        f"the model's outputs are {kind}, but the loss on labels needs classes or tokens; "
        "use the divergence from the fine-tuned model"
    )


def test_classes_without_labels_are_refused():
    assert message(UsageError, lambda: task_loss("classes", logits_of("classes", 1), None, {})) == (
        "the loss on labels needs labelled examples; give some, or use the divergence from the fine-tuned model"
    )
