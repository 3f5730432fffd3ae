"""Model Breadcrumbs: neither the largest entries nor the smallest ones.

Source: Davari and Belilovsky 2024, "Model Breadcrumbs" (arXiv 2312.06795); docs/methods.md §6.6.
"""

from collections.abc import Iterator, Sequence
from functools import partial as bind
from typing import Annotated

from pydantic import Field

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.methods.settings import ByTask
from flexswitch.merging.static.election import Election, Merge, merge_agreeing
from flexswitch.merging.static.task_deltas import Combination, TensorDeltas
from flexswitch.merging.static.ties import Lambda
from flexswitch.merging.static.trimming import keep_ranks, share
from flexswitch.merging.static.weighted import Normalize, merge_weighted

Density = Annotated[ByTask, Field(ge=0, le=1, description="Share of a tensor's entries that are kept.")]
Gamma = Annotated[
    ByTask,
    Field(ge=0, le=1, description="Share of the largest entries that is left out, at most 1 − density."),
]


def breadcrumbs(
    deltas: TensorDeltas,
    *,
    density: Density = 0.1,
    gamma: Gamma = 0.01,
    normalize: Normalize = False,
    lambda_: Lambda = 0.3,
) -> Combination:
    """Returns λ Σ_k w_k τ'_k, where τ' keeps the share `density` of each tensor below its largest entries."""
    trim = bind(_middle, deltas, deltas.by_task(density), deltas.by_task(gamma))
    return Combination(lambda block: lambda_ * merge_weighted(block.deltas, deltas.weights, normalize), trim)


def breadcrumbs_ties(
    deltas: TensorDeltas,
    *,
    density: Density = 0.1,
    gamma: Gamma = 0.01,
    election: Election = "mass",
    merge: Merge = "mean",
    lambda_: Lambda = 1.0,
) -> Combination:
    """Returns λ times the merge of the entries that breadcrumbs keeps and that have the elected sign."""
    trim = bind(_middle, deltas, deltas.by_task(density), deltas.by_task(gamma))
    return Combination(
        lambda block: lambda_ * merge_agreeing(block.deltas, deltas.weights, election, merge), trim
    )


def _middle(
    deltas: TensorDeltas,
    densities: Sequence[float],
    gammas: Sequence[float],
    task: int,
    blocks: Iterator[FloatArray],
) -> Iterator[FloatArray]:
    """Yields the blocks with only the ⌊density · n⌋ entries after the ⌊γ · n⌋ largest."""
    kept = share(densities[task], deltas.entries)
    largest = min(share(gammas[task], deltas.entries), deltas.entries - kept)
    return keep_ranks(deltas, task, blocks, largest, largest + kept)
