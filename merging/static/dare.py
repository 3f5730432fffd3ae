"""DARE: each entry is dropped by chance, and the others are scaled up; then the sum, or TIES-Merging.

Source: Yu et al. 2024, "Language Models are Super Mario" (arXiv 2311.03099); docs/methods.md §6.4.
"""

from collections.abc import Iterator, Sequence
from functools import partial as bind
from typing import Annotated

from pydantic import Field

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.methods.settings import ByTask
from flexswitch.merging.static.election import Election, Merge, merge_agreeing
from flexswitch.merging.static.random_trimming import Rescale, Seed, drawn_uniformly
from flexswitch.merging.static.task_deltas import Combination, TensorDeltas, Trim
from flexswitch.merging.static.ties import Lambda
from flexswitch.merging.static.weighted import Normalize, merge_weighted

Density = Annotated[ByTask, Field(ge=0, le=1, description="Probability that an entry is kept.")]


def dare_linear(
    deltas: TensorDeltas,
    *,
    density: Density = 0.5,
    rescale: Rescale = "probability",
    normalize: Normalize = False,
    lambda_: Lambda = 0.3,
    seed: Seed = 0,
) -> Combination:
    """Returns λ Σ_k w_k τ'_k, where τ' keeps entries by chance."""
    return Combination(
        lambda block: lambda_ * merge_weighted(block.deltas, deltas.weights, normalize),
        _trim(deltas, density, rescale, seed),
    )


def dare_ties(
    deltas: TensorDeltas,
    *,
    density: Density = 0.5,
    rescale: Rescale = "probability",
    election: Election = "mass",
    merge: Merge = "mean",
    lambda_: Lambda = 1.0,
    seed: Seed = 0,
) -> Combination:
    """Returns λ times the merge of the entries that are kept by chance and have the elected sign."""
    return Combination(
        lambda block: lambda_ * merge_agreeing(block.deltas, deltas.weights, election, merge),
        _trim(deltas, density, rescale, seed),
    )


def _trim(deltas: TensorDeltas, density: ByTask, rescale: str, seed: int) -> Trim:
    return bind(_drawn, deltas, deltas.by_task(density), rescale, seed)


def _drawn(
    deltas: TensorDeltas,
    densities: Sequence[float],
    rescale: str,
    seed: int,
    task: int,
    blocks: Iterator[FloatArray],
) -> Iterator[FloatArray]:
    return drawn_uniformly(deltas, task, blocks, densities[task], seed, rescale)
