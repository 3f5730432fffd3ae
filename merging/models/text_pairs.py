"""Pairs of texts that a model embeds apart, each text as a sample of its own."""

import numpy as np

from flexswitch.codecs.errors import InputError
from flexswitch.merging.models.conversations import Pair
from flexswitch.merging.models.examples import Examples


def apart(examples: Examples) -> Examples:
    """Returns the first texts of all pairs and then the second ones, or the examples if none is a pair.

    Both texts have the label of their pair. Raises: InputError if only some examples are pairs.
    """
    pairs = [text for text in examples.inputs if isinstance(text, Pair)]
    if not pairs:
        return examples
    if len(pairs) != len(examples):
        source = "the examples" if examples.origin is None else str(examples.origin.path)
        raise InputError(
            f"{source}: {len(pairs)} of its {len(examples)} examples are pairs of texts, expected all or none"
        )
    twice = examples.take(np.tile(np.arange(len(pairs)), 2))
    texts = [pair.first for pair in pairs] + [pair.second for pair in pairs]
    return Examples(texts, twice.labels, twice.origin, are_apart=True)
