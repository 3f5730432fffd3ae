"""The metrics of `eval`: one record each. To add one, write its function, its record here and its test.

A metric compares a model's answers with labels; merging/models/answers.py says which form both have.
"""

import math
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from flexswitch.codecs.errors import InputError, UsageError, unknown_name
from flexswitch.merging.models.outputs import OutputKind

Unit = Literal["%", "perplexity"]


@dataclass(frozen=True)
class Metric:
    """One metric.

    kinds: the kinds of output that it measures; score: (answers, labels), one of each for an example → the
    value in its unit. Values of one unit are averaged over tasks. labelled: whether examples need labels;
    generated: whether the answers are texts that a language model generates, and the labels its examples';
    of_pairs: whether the examples are pairs of texts, apart (text_pairs.py); relative: whether the labels are
    the answers of the fine-tuned model.
    """

    name: str
    kinds: tuple[OutputKind, ...]
    score: Callable[[Sequence[Any], Sequence[Any]], float]
    unit: Unit = "%"
    labelled: bool = True
    generated: bool = False
    of_pairs: bool = False
    relative: bool = False


def metric_of(kind: OutputKind, wanted: str | None, task: str, has_pairs: bool = False) -> Metric:
    """Returns the metric of a task: the wanted one, or the first that measures its kind.

    has_pairs: whether the examples are pairs of texts with labels. Raises: UsageError where the wanted one
    measures other outputs.
    """
    able = [metric for metric in METRICS if kind in metric.kinds]
    if not able:
        raise UsageError(f"the outputs of {task} are of the kind '{kind}', which no metric measures")
    if wanted is None:
        return next(metric for metric in able if has_pairs or not metric.of_pairs)
    found = next((metric for metric in able if metric.name == wanted), None)
    if found is not None and found.of_pairs and not has_pairs:
        raise UsageError(
            f"--metric {task}={wanted}: of embeddings it needs pairs of texts with scores; expected examples "
            "with the fields 'text', 'text_pair' and 'label'"
        )
    if found is None:
        names = ", ".join(metric.name for metric in able)
        raise UsageError(
            f"--metric {task}={wanted}: does not measure outputs of the kind '{kind}'; those that do: {names}"
        )
    return found


def common_unit(metrics: Iterable[Metric]) -> Unit | None:
    """Returns the unit of all metrics, whose values can then be averaged, or None."""
    units = {metric.unit for metric in metrics}
    return units.pop() if len(units) == 1 else None


def check_metric(wanted: str, task: str) -> None:
    """Raises: UsageError where no metric has this name."""
    names = list(dict.fromkeys(metric.name for metric in METRICS))
    if wanted not in names:
        raise UsageError(f"--metric {task}={wanted}: {unknown_name('metric', wanted, names)}")


def _sklearn() -> Any:
    """Returns scikit-learn's metrics. Raises: InputError where it is not installed."""
    try:
        import sklearn.metrics
    except ImportError as reason:
        raise InputError("measuring needs scikit-learn; pip install 'flexswitch[eval]'") from reason
    return sklearn.metrics


def _accuracy(answers: Sequence[Any], labels: Sequence[Any]) -> float:
    right = _sklearn().accuracy_score(np.asarray(labels), np.asarray(answers), normalize=False)
    return 100 * float(right) / len(labels)


def _f1(answers: Sequence[Any], labels: Sequence[Any]) -> float:
    """Returns the F1 of class 1 where there are no others but 0, else the mean of the classes' F1."""
    f1_score = _sklearn().f1_score
    binary = {0, 1}.issuperset([*answers, *labels])
    return 100 * float(f1_score(labels, answers, average="binary" if binary else "macro", zero_division=0))


def _micro_f1(answers: Sequence[Any], labels: Sequence[Any]) -> float:
    pairs = np.asarray(labels), np.asarray(answers)
    return 100 * float(_sklearn().f1_score(*pairs, average="micro", zero_division=0))


def _matthews(answers: Sequence[Any], labels: Sequence[Any]) -> float:
    return 100 * float(_sklearn().matthews_corrcoef(labels, answers))


def _pearson(answers: Sequence[Any], labels: Sequence[Any]) -> float:
    return _correlation(np.asarray(answers, np.float64), np.asarray(labels, np.float64))


def _spearman(answers: Sequence[Any], labels: Sequence[Any]) -> float:
    _sklearn()  # scipy comes with it
    from scipy.stats import rankdata

    return _correlation(rankdata(answers, axis=0), rankdata(labels, axis=0))


def _correlation(one: Any, other: Any) -> float:
    """Returns the mean over columns of the correlation, 0 for one without variance."""
    one, other = one - one.mean(0), other - other.mean(0)
    sizes = np.sqrt((one**2).sum(0) * (other**2).sum(0))
    return 100 * float(np.mean((one * other).sum(0) / np.where(sizes > 0, sizes, np.inf)))


def _scored_words(answers: Sequence[Any], labels: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Returns the classes of all words that have a label and were not cut off, and their labels."""
    pairs = [
        (found, true)
        for words, own in zip(answers, labels, strict=True)
        for found, true in zip(words, own, strict=False)
        if found is not None and true is not None
    ]
    return [found for found, _ in pairs], [true for _, true in pairs]


def _word_accuracy(answers: Sequence[Any], labels: Sequence[Any]) -> float:
    return _accuracy(*_scored_words(answers, labels))


def _word_f1(answers: Sequence[Any], labels: Sequence[Any]) -> float:
    """Returns the F1 of all words whose class is not 0, which is that of words outside of any name."""
    found, true = _scored_words(answers, labels)
    classes = sorted({*found, *true} - {0})
    if not classes:
        return 100.0
    return 100 * float(_sklearn().f1_score(true, found, labels=classes, average="micro", zero_division=0))


def _exact_match(answers: Sequence[Any], labels: Sequence[Any]) -> float:
    """Returns the share of answers that are one of the accepted texts, but for case and punctuation."""
    same = [plain_words(found) in map(plain_words, own) for found, own in zip(answers, labels, strict=True)]
    return 100 * sum(same) / len(same)


def _overlap(answers: Sequence[Any], labels: Sequence[Any]) -> float:
    """Returns the mean over answers of the F1 of their words against the accepted text that fits best."""
    best = [
        max(_word_overlap(plain_words(found), plain_words(text)) for text in own)
        for found, own in zip(answers, labels, strict=True)
    ]
    return 100 * sum(best) / len(best)


def _word_overlap(one: Sequence[str], other: Sequence[str]) -> float:
    if not one or not other:
        return float(one == other)
    return 2 * (Counter(one) & Counter(other)).total() / (len(one) + len(other))


def plain_words(text: str) -> list[str]:
    """Returns a text's words in lower case, without punctuation and articles.

    Source: Rajpurkar et al. 2016 (arXiv 1606.05250), SQuAD's evaluation.

    >>> plain_words("The cat, and a Dog!")
    ['cat', 'and', 'dog']
    """
    letters = "".join(each for each in text.lower() if each not in string.punctuation)
    return [word for word in letters.split() if word not in ("a", "an", "the")]


def _perplexity(answers: Sequence[Any], labels: Sequence[Any]) -> float:
    """Returns the exponential of the tokens' mean loss; answers: (sum of losses in nats, tokens)."""
    losses, count = (float(sum(parts)) for parts in zip(*answers, strict=True))
    return math.exp(losses / max(count, 1))


def _same_text(answers: Sequence[Any], labels: Sequence[Any]) -> float:
    same: list[bool] = [found.strip() == text.strip() for found, text in zip(answers, labels, strict=True)]
    return 100 * sum(same) / len(same)


def _cosines(one: Sequence[Any], other: Sequence[Any]) -> Any:
    """Returns the cosines of the angles of vectors, 0 where one is zero."""
    left, right = np.asarray(one, np.float64), np.asarray(other, np.float64)
    sizes = np.sqrt((left**2).sum(1) * (right**2).sum(1))
    return (left * right).sum(1) / np.where(sizes > 0, sizes, np.inf)


def _similarity(answers: Sequence[Any], labels: Sequence[Any]) -> float:
    return 100 * float(np.mean(_cosines(answers, labels)))


def _pair_spearman(answers: Sequence[Any], labels: Sequence[Any]) -> float:
    """Returns Spearman's correlation of the cosines of the pairs, the second of each in the second half."""
    half = len(answers) // 2
    cosines = _cosines(answers[:half], answers[half:]).tolist()
    return _spearman([[each] for each in cosines], [[label] for label in labels[:half]])


def _objects(answers: Sequence[Any], labels: Sequence[Any]) -> float:
    """Returns the mean IoU over the queries in which either model finds an object, 100 if none does.

    An answer has a row for each query: its class, -1 for no object, and the box. Objects of different
    classes, and one that only one model finds, count 0.
    """
    one, other = np.concatenate(answers), np.concatenate(labels)
    either = (one[:, 0] >= 0) | (other[:, 0] >= 0)
    same = one[:, 0] == other[:, 0]
    each = (same * _overlaps(one[:, 1:], other[:, 1:]))[either]  # (object,)
    return 100 * float(each.mean()) if len(each) else 100.0


def _overlaps(one: Any, other: Any) -> Any:
    """Returns the intersections over the unions of boxes (centre x, centre y, width, height)."""
    pairs = [(boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2) for boxes in (one, other)]
    low, high = np.maximum(pairs[0][0], pairs[1][0]), np.minimum(pairs[0][1], pairs[1][1])
    shared = (high - low).clip(min=0).prod(1)
    union = one[:, 2:].prod(1) + other[:, 2:].prod(1) - shared
    return shared / np.where(union > 0, union, np.inf)


# The first that measures a kind is its default.
METRICS = (
    Metric("accuracy", ("classes",), _accuracy),
    Metric("f1", ("classes",), _f1),
    Metric("matthews", ("classes",), _matthews),
    Metric("f1", ("labels",), _micro_f1),
    Metric("accuracy", ("labels",), _accuracy),
    Metric("pearson", ("values",), _pearson),
    Metric("spearman", ("values",), _spearman),
    Metric("token-f1", ("token-classes",), _word_f1),
    Metric("accuracy", ("token-classes",), _word_accuracy),
    Metric("token-f1", ("spans",), _overlap),
    Metric("exact-match", ("spans", "masked-tokens"), _exact_match),
    Metric("perplexity", ("tokens",), _perplexity, "perplexity", labelled=False),
    Metric("exact-match", ("tokens",), _same_text, labelled=False, generated=True),
    Metric("spearman", ("features",), _pair_spearman, of_pairs=True),
    Metric("cosine", ("features",), _similarity, labelled=False, relative=True),
    Metric("iou", ("boxes",), _objects, labelled=False, relative=True),
)
