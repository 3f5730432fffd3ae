"""The config.json of a fine-tune that has none, such as a LoRA: its base's, with the sizes of its tensors."""

import re
from collections.abc import Mapping
from typing import Any

from flexswitch.merging.checkpoints.pairing import Headers, Pairing

# The last layer of a classifier in transformers.
_CLASSES = re.compile(r"(?:.*\.)?(?:classifier|score)(?:\.out_proj|\.\d+)?\.weight")
_DEFAULT_CLASSES = 2


def implied_config(
    config: Mapping[str, Any], base: Headers, finetuned: Headers, pairing: Pairing
) -> dict[str, Any]:
    """Returns the base's config.json with the numbers of classes and words that a fine-tune's tensors have.

    They are those of tensors that it stores whole; a new head's classes have the names of transformers.
    """
    if not config:
        return {}
    own = {name: finetuned.tensors[name].shape for name in pairing.extras}
    rows: dict[int, int] = {}
    for name, shape in own.items():
        other = base.tensors.get(pairing.base_prefix + name.removeprefix(pairing.prefix))
        if other is not None and len(shape) == 2 and shape[1:] == other.shape[1:]:
            rows[other.shape[0]] = shape[0]
    found = _resized(config, rows)
    counts = {shape[0] for name, shape in own.items() if _CLASSES.fullmatch(name) and len(shape) > 1}
    if len(counts) == 1 and counts != {len(config.get("id2label") or range(_DEFAULT_CLASSES))}:
        labels = [f"LABEL_{number}" for number in range(*counts)]
        found["id2label"] = {str(number): label for number, label in enumerate(labels)}
        found["label2id"] = {label: number for number, label in enumerate(labels)}
    return found


def _resized(config: Mapping[str, Any], rows: Mapping[int, int]) -> dict[str, Any]:
    """Returns a config whose numbers of words, at any depth, are those of other rows."""
    return {
        key: _resized(value, rows)
        if isinstance(value, dict)
        else rows.get(value, value)
        if key == "vocab_size" and type(value) is int
        else value
        for key, value in config.items()
    }
