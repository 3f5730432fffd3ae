"""TIES-Merging: trim, elect signs, merge what agrees.

Source: Yadav et al. 2023 (arXiv 2306.01708); docs/methods.md §6.3.
"""

from collections.abc import Iterator, Sequence
from functools import partial as bind
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.methods.settings import ByTask
from flexswitch.merging.static.election import Election, Merge, elected_signs, merge_agreeing
from flexswitch.merging.static.task_deltas import Block, Combination, ModelDeltas, TensorDeltas
from flexswitch.merging.static.trimming import keep_ranks, keep_reaching, model_thresholds, share

Lambda = Annotated[float, Field(description="Scale of the merged delta.")]


def ties(
    deltas: TensorDeltas,
    *,
    density: Annotated[ByTask, Field(ge=0, le=1, description="Share of the entries that are kept.")] = 0.2,
    scope: Annotated[
        Literal["model", "tensor"],
        Field(description="Where the share is taken: of the whole model, or of each tensor."),
    ] = "model",
    election: Election = "mass",
    merge: Merge = "mean",
    lambda_: Lambda = 1.0,
) -> Combination:
    """Returns λ times the merge of each task's largest entries that have the elected sign.

    scope=model keeps ⌊density · d⌋ + 1 of the model's d entries and all that equal the last, and where votes
    are equal takes the sign that is elected more often, as the paper's code does; scope=tensor keeps exactly
    ⌊density · n⌋ of a tensor's n entries, at least one, and takes + where votes are equal, as mergekit does.
    """
    densities = deltas.by_task(density)
    if scope == "model":
        least = model_thresholds(deltas.model, densities)
        tie = _majority(deltas.model, least, densities, election)
        trim = bind(_reaching, least)
    else:
        tie, trim = 1.0, bind(_largest, deltas, densities)

    def combine(block: Block) -> Tensor:
        return lambda_ * merge_agreeing(block.deltas, deltas.weights, election, merge, tie)

    return Combination(combine, trim)


def _reaching(least: Sequence[float], task: int, blocks: Iterator[FloatArray]) -> Iterator[FloatArray]:
    return keep_reaching(blocks, least[task])


def _largest(
    deltas: TensorDeltas, densities: Sequence[float], task: int, blocks: Iterator[FloatArray]
) -> Iterator[FloatArray]:
    count = max(share(densities[task], deltas.entries), int(densities[task] > 0))
    return keep_ranks(deltas, task, blocks, 0, count)


def _majority(model: ModelDeltas, least: Sequence[float], densities: Sequence[float], election: str) -> float:
    """Returns the sign that is elected for more entries of the model, −1 where both are as frequent."""

    def compute() -> float:
        balance = sum(
            int(elected_signs(block.deltas, model.weights_of(name), election).sum())
            for name in model.names
            if model.tensor(name).tasks
            for block in model.tensor(name).blocks(bind(_reaching, least))
        )
        return float(np.where(balance > 0, 1, -1))

    return model.once(("majority", tuple(densities), election), compute)
