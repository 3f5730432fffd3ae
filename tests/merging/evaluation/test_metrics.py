"""Every metric equals a plain computation, and a task's metric is its kind's default or the wanted one."""

import inspect
import itertools

import numpy as np
import pytest
from support.checkpoints import message

from flexswitch.cli.eval import evaluate
from flexswitch.codecs.errors import UsageError
from flexswitch.merging.evaluation.metrics import METRICS, common_unit, metric_of
from flexswitch.merging.evaluation.scores import Score

DRAW = np.random.default_rng(0)
TRUE, FOUND = DRAW.integers(0, 3, 40).tolist(), DRAW.integers(0, 3, 40).tolist()
TWO, TWO_FOUND = [each % 2 for each in TRUE], [each % 2 for each in FOUND]
MARKS, MARKS_FOUND = (DRAW.integers(0, 2, (40, 3)).tolist() for _ in range(2))
VALUES = DRAW.normal(size=(40, 2))
VALUES_FOUND = VALUES**3 + DRAW.normal(size=(40, 2))


def named(name, kind):
    return next(metric for metric in METRICS if metric.name == name and kind in metric.kinds)


def f1(true, found, positive):
    both = sum(one == two == positive for one, two in zip(true, found, strict=True))
    return 2 * both / (true.count(positive) + found.count(positive))


def matthews(true, found):
    """Returns the correlation of one-hot rows: Gorodkin's R_K."""
    one, two = (np.eye(3)[each] - np.eye(3)[each].mean(0) for each in (true, found))
    return (one * two).sum() / np.sqrt((one**2).sum() * (two**2).sum())


def ranks(values):
    return [
        sum(other < each for other in values) + sum(other == each for other in values) / 2 for each in values
    ]


def flat(rows):
    return list(itertools.chain.from_iterable(rows))


# None: a word that is not scored, or was cut off
WORD_LABELS = [[0, 1, 2, None], [0, 0], [2, 1, 1]]
WORDS_FOUND = [[0, 1, 1, 2], [0, 1], [2, None, 0]]
TEXT_LABELS = [("The red fox",), ("a dog", "the Dogs!"), ("cats and dogs",), ("bird",)]
TEXTS_FOUND = ["red fox.", "dogs", "cats", ""]

# The first texts' embeddings and then the second ones', at growing angles.
PAIRS = [np.array([1.0, 0])] * 4 + [
    np.array([np.cos(angle), np.sin(angle)]) for angle in (0.1, 0.5, 1.0, 2.0)
]
# A row for each query: its class, and its box (centre x, centre y, width, height)
OBJECTS = [np.array([[1, 0.5, 0.5, 0.2, 0.2], [0, 0.2, 0.2, 0.2, 0.2], [-1, 0.5, 0.5, 1, 1]]),
           np.array([[2, 0.5, 0.5, 0.2, 0.2], [0, 0.5, 0.5, 0.2, 0.2], [1, 0.2, 0.5, 0.4, 0.2]])]  # fmt: skip
OBJECTS_FOUND = [np.array([[1, 0.5, 0.5, 0.2, 0.2], [0, 0.3, 0.3, 0.2, 0.2], [-1, 0.1, 0.1, 1, 1]]),
                 np.array([[1, 0.5, 0.5, 0.2, 0.2], [-1, 0.5, 0.5, 0.2, 0.2], [1, 0.4, 0.5, 0.4, 0.2]])]  # fmt: skip

CASES = [
    ("accuracy", "classes", TRUE, FOUND, np.mean(np.array(TRUE) == FOUND)),
    ("accuracy", "labels", MARKS, MARKS_FOUND, np.mean([a == b for a, b in zip(MARKS, MARKS_FOUND, strict=True)])),
    ("f1", "classes", TWO, TWO_FOUND, f1(TWO, TWO_FOUND, 1)),
    ("f1", "classes", TRUE, FOUND, np.mean([f1(TRUE, FOUND, each) for each in range(3)])),
    ("f1", "labels", MARKS, MARKS_FOUND, f1(flat(MARKS), flat(MARKS_FOUND), 1)),
    ("matthews", "classes", TRUE, FOUND, matthews(TRUE, FOUND)),
    ("pearson", "values", VALUES.tolist(), VALUES_FOUND.tolist(),
     np.mean([np.corrcoef(VALUES[:, n], VALUES_FOUND[:, n])[0, 1] for n in range(2)])),
    ("spearman", "values", VALUES[:, :1].tolist(), VALUES_FOUND[:, :1].tolist(),
     np.corrcoef(ranks(VALUES[:, 0]), ranks(VALUES_FOUND[:, 0]))[0, 1]),
    ("accuracy", "token-classes", WORD_LABELS, WORDS_FOUND, 4 / 7),
    # found 1, 1, 1, 2 and true 1, 2, 2, 1 among the scored words: two of them alike
    ("token-f1", "token-classes", WORD_LABELS, WORDS_FOUND, 2 * 2 / (4 + 4)),
    ("token-f1", "spans", TEXT_LABELS, TEXTS_FOUND, (1 + 1 + 2 * 1 / (1 + 3) + 0) / 4),
    ("exact-match", "spans", TEXT_LABELS, TEXTS_FOUND, 2 / 4),
    ("exact-match", "masked-tokens", TEXT_LABELS, TEXTS_FOUND, 2 / 4),
    ("perplexity", "tokens", [None] * 3, [(2.0, 4), (1.0, 1), (0.0, 0)], np.exp(3 / 5) / 100),
    ("spearman", "features", [3.0, 1.0, 2.0, 0.5] * 2, PAIRS, np.corrcoef([4, 2, 3, 1], [4, 3, 2, 1])[0, 1]),
    ("cosine", "features", [np.array([1.0, 0]), np.array([0, 2.0])], [np.array([3.0, 4]), np.array([0.0, 0])], 0.6 / 2),
    ("iou", "boxes", OBJECTS, OBJECTS_FOUND, (1 + 1 / 7 + 0 + 0 + 1 / 3) / 5),
    ("exact-match", "tokens", [" a, b", "C", ""], ["a, b\n", "c", ""], 2 / 3),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "labels", "answers", "expected"), CASES)
def test_a_metric_equals_a_plain_computation(name, kind, labels, answers, expected):
    assert named(name, kind).score(answers, labels) == pytest.approx(100 * expected)


def test_every_metric_has_a_case():
    assert {(name, kind) for name, kind, *_ in CASES} == {
        (metric.name, kind) for metric in METRICS for kind in metric.kinds
    }


@pytest.mark.parametrize(
    ("name", "kind", "one", "expected"),
    [("matthews", "classes", 1, 0), ("f1", "classes", 0, 0), ("pearson", "values", [0.5], 0), ("spearman", "values", [0.5], 0)],
)  # fmt: skip
def test_answers_that_are_all_the_same_have_a_score(name, kind, one, expected):
    labels = [[0.25], [1.0], [2.0]] if kind == "values" else [0, 1, 1]
    assert named(name, kind).score([one] * 3, labels) == expected


@pytest.mark.parametrize(
    ("kind", "name"),
    [("classes", "accuracy"), ("labels", "f1"), ("values", "pearson"), ("token-classes", "token-f1"),
     ("spans", "token-f1"), ("masked-tokens", "exact-match"), ("features", "cosine"), ("boxes", "iou")],
)  # fmt: skip
def test_the_first_metric_of_a_kind_is_its_default(kind, name):
    assert metric_of(kind, None, "birds").name == name


def test_embeddings_of_scored_pairs_are_measured_by_their_scores():
    assert metric_of("features", None, "birds", has_pairs=True).name == "spearman"
    assert message(UsageError, lambda: metric_of("features", "spearman", "birds")) == (
        "--metric birds=spearman: of embeddings it needs pairs of texts with scores; expected examples with the "
        "fields 'text', 'text_pair' and 'label'"
    )


def test_outputs_of_a_kind_that_is_unknown_are_refused():
    assert message(UsageError, lambda: metric_of("waves", None, "birds")) == (
        "the outputs of birds are of the kind 'waves', which no metric measures"
    )


def test_detectors_without_an_object_agree():
    nothing = np.array([[-1, 0.5, 0.5, 0.2, 0.2]])
    assert named("iou", "boxes").score([nothing], [nothing + np.array([0, 1, 1, 1, 1])]) == 100


def test_metrics_of_one_unit_can_be_averaged():
    by_unit = {unit: [each for each in METRICS if each.unit == unit] for unit in ("%", "perplexity")}
    assert [common_unit(own) for own in by_unit.values()] == ["%", "perplexity"]
    assert common_unit(METRICS) is None


def test_a_larger_perplexity_is_worse():
    one, other = (
        Score("m", values, 1.0, 0.1, unit="perplexity")
        for values in ({"a": 2.0, "b": 8.0}, {"a": 4.0, "b": 8.0})
    )
    assert one.average == pytest.approx(4.0)
    assert one.goodness > other.goodness
    assert other.shares_of(one) == pytest.approx([0.5**0.5, 0.5, 1.0])
    assert Score("m", {"a": 50.0}, 1.0, 0.1).shares_of(Score("m", {"a": 80.0}, 1.0, 0.1)) == [0.625, 0.625]


def test_values_of_several_units_have_no_average():
    score = Score("m", {"a": 2.0, "b": 80.0}, 1.0, 0.1, unit=None)
    assert (score.average, score.shares_of(score)) == (None, [])


def test_the_help_of_eval_names_every_metric():
    help_text = inspect.signature(evaluate).parameters["metric"].annotation.__metadata__[0].help
    for metric in METRICS:
        assert metric.name in help_text
