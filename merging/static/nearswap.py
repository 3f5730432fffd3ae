"""Nearswap: the base moves to a second model where both are near. Source: docs/methods.md §6.20."""

from typing import Annotated

from pydantic import Field

from flexswitch.merging.static.task_deltas import Combination, TensorDeltas

_LEAST = 1e-6  # differences below it count as this one


def nearswap(
    deltas: TensorDeltas,
    *,
    t: Annotated[float, Field(ge=0, description="Largest difference that is taken whole.")] = 0.0001,
) -> Combination:
    """Returns the delta of one task, each entry times t / |τ| where that is below 1."""
    return Combination(
        lambda block: (t / block.deltas[0].abs().clamp(min=_LEAST)).clamp(0, 1) * block.deltas[0]
    )
