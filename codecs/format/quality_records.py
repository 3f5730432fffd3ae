"""Strict schemas of what an artifact says of its own quality. FORMAT.md specifies them."""

from typing import Annotated, NamedTuple

from pydantic import Field, FiniteFloat

from flexswitch.codecs.format.fields import Count, RelativeError, Sha256, Share
from flexswitch.codecs.format.strict import Strict

MOST_WORST = 3  # tensors whose error an artifact names
MOST_TRIES = 64  # of a search that an artifact lists


class QualityRecord(Strict):
    """How well a compressed model matches the fine-tuned one, on training and on held-out exemplars.

    divergence: in nats per example or token; for features the mean squared difference. agreement: share
    of equal answers.
    """

    divergence: FiniteFloat
    agreement: FiniteFloat
    held_out_divergence: FiniteFloat | None = None
    held_out_agreement: FiniteFloat | None = None


class TrainingRecord(Strict):
    """The record of a compression's training. Numbers have four significant digits.

    exemplars, held_out: how many were used for training and how many held out. before: at the start of
    training. after: of the stored result. curve: (steps done, mean loss, mean estimated bits per
    parameter) for successive ranges of steps.
    """

    exemplars: Count
    exemplars_sha256: Sha256
    held_out: Count
    before: QualityRecord
    after: QualityRecord
    curve: list[tuple[Count, FiniteFloat, FiniteFloat]] = []


class ErrorRecord(Strict):
    """How far the stored tensors are from those that they stand for: ‖τ − τ̂‖ / ‖τ‖, to four digits.

    relative: over all tensors that were compared. worst: of the tensors where it is largest, those first.
    """

    relative: RelativeError
    worst: Annotated[dict[str, RelativeError], Field(max_length=MOST_WORST)] = {}


class BudgetTry(NamedTuple):
    """One compression of a search: the setting's value, the file's bytes, and the share of equal answers."""

    value: str | int | FiniteFloat
    bytes: Count
    agreement: Share


class BudgetRecord(Strict):
    """The record of the search for the smallest artifact that keeps a share of the answers.

    asked: that share. setting: the one that was varied. examples: how many the answers to were compared, none
    of which a training used. kept: the artifact's share. tries: in their order; without this record in the
    files. Shares have four significant digits.
    """

    asked: Share
    setting: str
    examples: Count
    kept: Share
    tries: Annotated[list[BudgetTry], Field(max_length=MOST_TRIES)]


def four_digits(value: float) -> float:
    """Returns a number to four significant digits, as records hold figures."""
    return float(f"{value:.4g}")
