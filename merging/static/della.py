"""DELLA: entries are dropped by chance, the smaller ones of a row more probably.

Source: Deep et al. 2024, "DELLA-Merging" (arXiv 2406.11617); docs/methods.md §6.5.
"""

from collections.abc import Iterator, Sequence
from functools import partial as bind
from typing import Annotated

from pydantic import Field

from flexswitch.codecs.errors import UsageError
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.methods.settings import ByTask
from flexswitch.merging.static.election import Election, Merge, merge_agreeing
from flexswitch.merging.static.random_trimming import Rescale, Seed, drawn_by_rank
from flexswitch.merging.static.task_deltas import Combination, TensorDeltas, Trim
from flexswitch.merging.static.ties import Lambda
from flexswitch.merging.static.weighted import Normalize, merge_weighted

Density = Annotated[ByTask, Field(gt=0, le=1, description="Mean probability that an entry is kept.")]
Epsilon = Annotated[
    ByTask, Field(ge=0, lt=0.5, description="How far the probability goes from its mean to both sides.")
]


def della(
    deltas: TensorDeltas,
    *,
    density: Density = 0.7,
    epsilon: Epsilon = 0.07,
    rescale: Rescale = "probability",
    election: Election = "mass",
    merge: Merge = "mean",
    lambda_: Lambda = 1.0,
    seed: Seed = 0,
) -> Combination:
    """Returns λ times the merge of the entries that are kept and have the elected sign.

    Raises: UsageError unless density − epsilon and density + epsilon are between 0 and 1.
    """
    return Combination(
        lambda block: lambda_ * merge_agreeing(block.deltas, deltas.weights, election, merge),
        _trim(deltas, density, epsilon, rescale, seed),
    )


def della_linear(
    deltas: TensorDeltas,
    *,
    density: Density = 0.7,
    epsilon: Epsilon = 0.07,
    rescale: Rescale = "probability",
    normalize: Normalize = False,
    lambda_: Lambda = 0.3,
    seed: Seed = 0,
) -> Combination:
    """Returns λ Σ_k w_k τ'_k, where τ' has the entries that are kept.

    Raises: UsageError unless density − epsilon and density + epsilon are between 0 and 1.
    """
    return Combination(
        lambda block: lambda_ * merge_weighted(block.deltas, deltas.weights, normalize),
        _trim(deltas, density, epsilon, rescale, seed),
    )


def _trim(deltas: TensorDeltas, density: ByTask, epsilon: ByTask, rescale: str, seed: int) -> Trim:
    densities, epsilons = deltas.by_task(density), deltas.by_task(epsilon)
    for mean, distance in zip(densities, epsilons, strict=True):
        if mean < 1 and not 0 < mean - distance <= mean + distance < 1:
            raise UsageError(
                f"density={mean:g} with epsilon={distance:g}: expected probabilities between 0 and 1, found "
                f"{mean - distance:g} to {mean + distance:g}; give a smaller epsilon"
            )
    return bind(_drawn, deltas, densities, epsilons, rescale, seed)


def _drawn(
    deltas: TensorDeltas,
    densities: Sequence[float],
    epsilons: Sequence[float],
    rescale: str,
    seed: int,
    task: int,
    blocks: Iterator[FloatArray],
) -> Iterator[FloatArray]:
    if densities[task] == 1:  # everything is kept
        return blocks
    return drawn_by_rank(deltas, task, blocks, densities[task], epsilons[task], seed, rescale)
