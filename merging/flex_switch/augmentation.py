"""Makes more training inputs from a few exemplars.

Training on the fine-tuned model's answers needs no labels, so any input can be used. Inputs mixed from two
exemplars also show how the model answers between them.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexswitch.merging.models.conversations import Chat, Completion, Pair, Text
from flexswitch.merging.models.examples import Inputs

_LEAST_PART = 0.25  # least share of a text or picture that comes from each of the two


def augment(inputs: Inputs, count: int, seed: int) -> Inputs:
    """Returns `count` inputs, each mixed from two of the given ones, drawn by the seed.

    Texts: the first words of one and the last words of another, of conversations part by part. Arrays: a
    randomly weighted mean of two.
    """
    generator = np.random.Generator(np.random.PCG64([seed, len(inputs)]))
    pairs = generator.integers(len(inputs), size=(count, 2))  # sometimes one with itself
    shares = generator.uniform(_LEAST_PART, 1 - _LEAST_PART, count)
    if isinstance(inputs, np.ndarray):
        return _blended(inputs, pairs, shares)
    return [
        _spliced(inputs[first], inputs[second], share)
        for (first, second), share in zip(pairs.tolist(), shares.tolist(), strict=True)
    ]


def _spliced(first: Text, second: Text, share: float) -> Text:
    """Returns the first words of one text and the last words of the other; of others part by part."""
    if isinstance(first, Pair) and isinstance(second, Pair):
        return Pair(
            _spliced_words(first.first, second.first, share),
            _spliced_words(first.second, second.second, share),
        )
    if isinstance(first, Completion) and isinstance(second, Completion):
        return Completion(
            _spliced_words(first.question, second.question, share),
            _spliced_words(first.answer, second.answer, share),
        )
    if isinstance(first, Chat) and isinstance(second, Chat):
        others = (content for _, content in second.messages)
        return Chat(
            tuple(
                (role, _spliced_words(content, next(others, content), share))
                for role, content in first.messages
            )
        )
    return _spliced_words(str(first), str(second), share)


def _spliced_words(first: str, second: str, share: float) -> str:
    head, tail = first.split(), second.split()
    return " ".join(head[: round(share * len(head))] + tail[round(share * len(tail)) :])


def _blended(inputs: NDArray[Any], pairs: NDArray[np.int64], shares: NDArray[np.float64]) -> NDArray[Any]:
    weights = shares.astype(np.float32).reshape(-1, *[1] * (inputs.ndim - 1))
    mixed = weights * inputs[pairs[:, 0]] + (1 - weights) * inputs[pairs[:, 1]]
    whole = np.issubdtype(inputs.dtype, np.integer)
    return np.asarray(np.rint(mixed) if whole else mixed, inputs.dtype)
