"""PCB-Merging: entries compete by their size within a task and by their agreement with the other tasks.

Source: Du et al. 2024, "Parameter Competition Balancing for Model Merging" (arXiv 2410.02396), and its code;
docs/methods.md §6.13.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial as bind
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.static.signed_order_statistic import signed_order_statistics
from flexswitch.merging.static.task_deltas import Block, Combination, ModelDeltas, TensorDeltas
from flexswitch.merging.static.trimming import model_order_statistics

Form = Literal["pairs", "directions", "sum"]
Doubles = NDArray[np.float64]
Scores = Callable[[FloatArray], FloatArray]

_LEAST_TOTAL = 1e-12
_MOST_POWER = 88.0  # exp of it is a float32


class _Range(NamedTuple):
    """Where each task's values begin and end, (task, 1) each."""

    least: Doubles
    most: Doubles

    def normalised(self, values: FloatArray | Doubles) -> Doubles:
        """Returns values (task, entry) as shares of the range, from 0 to 1; 0 where it has no length."""
        width = self.most - self.least
        inside = np.clip(values.astype(np.float64), self.least, self.most) - self.least
        found: Doubles = inside / np.where(width > 0, width, 1.0)
        return found


def pcb(
    deltas: TensorDeltas,
    *,
    form: Annotated[
        Form,
        Field(
            description="What an entry is compared with: every task's by pairs, the sum of their normalised "
            "directions, or the sum of their deltas, which are the three forms of the published code."
        ),
    ] = "pairs",
    density: Annotated[
        float, Field(gt=0, le=1, description="Share of the model that each task keeps.")
    ] = 0.05,
    clip: Annotated[
        float, Field(ge=0, lt=0.5, description="Share of the magnitudes that is clipped at either end.")
    ] = 0.01,
    lambda_: Annotated[float, Field(description="Scale of the merged delta.")] = 1.2,
) -> Combination:
    """Returns λ times the mean of the clipped deltas, weighted by the scores of what each task keeps."""
    model = deltas.model
    magnitudes = _magnitude_range(model, clip)
    scores = bind(_scores, magnitudes, form)
    kept = _score_range(model, scores, (form, clip, density), density)

    def combine(block: Block) -> Tensor:
        found = block.deltas.numpy()
        shares = _shares(kept, scores(found))  # (task, entry)
        clipped = np.sign(found) * np.clip(np.abs(found), magnitudes.least, magnitudes.most)
        merged, total = np.zeros(found.shape[1]), np.zeros(found.shape[1])
        for share, delta, weight in zip(shares, clipped, deltas.weights, strict=True):
            merged += weight * share * delta
            total += share
        return torch.from_numpy((lambda_ * merged / np.maximum(total, _LEAST_TOTAL)).astype(np.float32))

    return Combination(combine)


def _scores(magnitudes: _Range, form: Form, deltas: FloatArray) -> FloatArray:
    """Returns exp(K · n²) times the agreement of each entry with the tasks, float32 (task, entry).

    Where float32 could not hold that, as for 84 tasks and more, all are smaller by one factor, which does not
    change the shares that are made of them.
    """
    sizes = magnitudes.normalised(np.abs(deltas))
    signed = np.sign(deltas) * sizes
    if form == "pairs":
        agreement = np.zeros(signed.shape)
        for other in signed:
            agreement += np.tanh(signed * other)
    else:
        total = np.zeros(signed.shape[1])
        for other in signed if form == "directions" else deltas:
            total += other
        agreement = np.tanh(deltas * total)
    count = len(deltas)
    excess = max(0.0, count + math.log(count) - _MOST_POWER)
    return (np.exp(count * sizes**2 - excess) * agreement).astype(np.float32)


def _shares(kept: _Range, scores: FloatArray) -> Doubles:
    """Returns scores (task, entry) as shares of their range, 1 for the largest where it has no length.

    So many entries may have the largest score, as those of deltas of one magnitude do, that none exceeds it.
    """
    alike = (kept.least == kept.most) & (kept.most > 0) & (scores >= kept.most)
    found: Doubles = np.where(alike, 1.0, kept.normalised(scores))
    return found


def _magnitude_range(model: ModelDeltas, clip: float) -> _Range:
    """Returns the magnitudes between which each task's are clipped, the model taken as one vector."""
    share = Fraction(str(clip))
    first, last = int(model.entries * share), max(0, int(model.entries * (1 - share)) - 1)

    def compute() -> _Range:
        found = [
            model_order_statistics(model, [model.entries - place] * len(model.tasks))
            for place in (first, max(first, last))
        ]
        least, most = (np.array(each)[:, None] for each in found)
        return _Range(least, most)

    return model.once(("pcb magnitudes", clip), compute)


def _score_range(model: ModelDeltas, scores: Scores, key: object, density: float) -> _Range:
    """Returns the score above which each task's largest are, and the largest, the model as one vector."""
    place = int(model.entries * (1 - Fraction(str(density))))
    ranks = (model.entries - min(model.entries - 1, place), 1)
    found = model.once(("pcb scores", key), lambda: signed_order_statistics(model, scores, ranks))
    least, most = (np.array(each)[:, None] for each in found)
    return _Range(least, most)
