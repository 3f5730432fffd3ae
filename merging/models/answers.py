"""A model's answers to examples, in the form of their labels (labels.py)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from flexswitch.merging.models.adapters import Adapter
from flexswitch.merging.models.examples import Batch, Inputs
from flexswitch.merging.models.outputs import OutputKind


def answers_of(adapter: Adapter, kind: OutputKind, logits: Tensor, batch: Batch, inputs: Inputs) -> list[Any]:
    """Returns the answer of each sample, from the logits of a batch that was made of some inputs.

    classes: the number of the largest logit; labels: 1 for each positive one, otherwise 0; values: all;
    features: all, as an array; of other kinds as the adapter answers.
    """
    if kind in _ANSWERS:
        found: list[Any] = _ANSWERS[kind](logits).cpu().tolist()
        return found
    if kind == "features":
        return list(logits.float().cpu().numpy())
    own: Callable[[Tensor, Batch, Inputs], list[Any]] = getattr(adapter, "answers")  # noqa: B009
    return own(logits, batch, inputs)


_ANSWERS: dict[OutputKind, Callable[[Tensor], Tensor]] = {
    "classes": lambda logits: logits.argmax(-1),
    "labels": lambda logits: (logits > 0).int(),
    "values": lambda logits: logits.float(),
}
