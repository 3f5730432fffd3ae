"""TIES-Merging: trim, elect signs, merge what agrees.

Source: Yadav et al. 2023 (arXiv 2306.01708); docs/methods.md §6.3.
"""

from collections.abc import Iterator, Sequence
from functools import partial as bind
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.methods.settings import ByTask
from flexswitch.merging.static.election import Election, Merge, merge_agreeing
from flexswitch.merging.static.majority import majority, reaching
from flexswitch.merging.static.task_deltas import Block, Combination, TensorDeltas
from flexswitch.merging.static.trimming import keep_ranks, model_thresholds, share

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
        tie = majority(deltas.model, least, densities, election)
        trim = bind(reaching, least)
    else:
        tie, trim = 1.0, bind(_largest, deltas, densities)

    def combine(block: Block) -> Tensor:
        return lambda_ * merge_agreeing(block.deltas, deltas.weights, election, merge, tie)

    return Combination(combine, trim)


def _largest(
    deltas: TensorDeltas, densities: Sequence[float], task: int, blocks: Iterator[FloatArray]
) -> Iterator[FloatArray]:
    count = max(share(densities[task], deltas.entries), int(densities[task] > 0))
    return keep_ranks(deltas, task, blocks, 0, count)
