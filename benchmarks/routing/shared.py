"""Finds texts that two tasks share, exactly or nearly."""

import re
from collections import defaultdict
from collections.abc import Sequence

_WORDS = 4  # a run of so many words is compared
_ALIKE = 0.5  # share of the runs of both that are in both


def shared_rows(texts: Sequence[str], others: Sequence[str]) -> tuple[list[int], list[int]]:
    """Returns the rows of texts that stand among the others word for word, and of more that nearly do.

    Words are runs of letters and digits in lower case. Two texts are nearly the same where half of the
    four-word runs in either are in both.
    """
    whole = {words_of(other) for other in others}
    runs_of_others = [_runs(words_of(other)) for other in others]
    where: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, runs in enumerate(runs_of_others):
        for run in runs:
            where[run].append(number)
    exact, near = [], []
    for row, text in enumerate(texts):
        words = words_of(text)
        if words in whole:
            exact.append(row)
            continue
        runs = _runs(words)
        candidates = {number for run in runs for number in where.get(run, ())}
        if any(_overlap(runs, runs_of_others[number]) >= _ALIKE for number in candidates):
            near.append(row)
    return exact, near


def words_of(text: str) -> tuple[str, ...]:
    """Returns a text's words."""
    return tuple(re.findall(r"[a-z0-9]+", text.lower()))


def _runs(words: tuple[str, ...]) -> set[tuple[str, ...]]:
    return {words[start : start + _WORDS] for start in range(len(words) - _WORDS + 1)}


def _overlap(runs: set[tuple[str, ...]], others: set[tuple[str, ...]]) -> float:
    return len(runs & others) / len(runs | others)
