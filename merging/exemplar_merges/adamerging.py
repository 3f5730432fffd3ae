"""AdaMerging: a coefficient for each task, or each of its tensors, at which the answers have least entropy.

Source: Yang et al. 2024, "AdaMerging: Adaptive Model Merging for Multi-Task Learning" (arXiv 2310.02575);
docs/methods.md §6.10.
"""

from functools import partial as bind
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from flexswitch.merging.exemplar_merges.coefficient_training import (
    By,
    CoefficientSettings,
    CoefficientTraining,
)
from flexswitch.merging.exemplar_merges.inputs import Learned, MergeInputs
from flexswitch.merging.exemplar_merges.kept_deltas import KeptDeltas
from flexswitch.merging.exemplar_merges.shared_models import SharedModels
from flexswitch.merging.static.election import elected_signs
from flexswitch.merging.static.majority import majority, reaching
from flexswitch.merging.static.task_deltas import Block
from flexswitch.merging.static.trimming import model_thresholds

Wise = Annotated[
    By, Field(description="A coefficient for each task and tensor (layer), or one for each task.")
]
Start = Annotated[float, Field(description="Coefficients before the first step.")]
Clamp = Annotated[bool, Field(description="Use coefficients below 0 as 0 and above 1 as 1.")]
Steps = Annotated[int, Field(ge=1, description="Training steps.")]
Batch = Annotated[int, Field(ge=1, description="Examples of each task in a step.")]
Rate = Annotated[float, Field(gt=0, description="Learning rate of Adam.")]
Seed = Annotated[int, Field(ge=0, description="Seed of the examples' order.")]


def adamerging(
    inputs: MergeInputs,
    *,
    by: Wise = "layer",
    start: Start = 0.3,
    clamp: Clamp = True,
    steps: Steps = 500,
    batch: Batch = 32,
    rate: Rate = 1e-3,
    seed: Seed = 0,
) -> Learned:
    """Returns θ + Σ_k λ_k τ_k with the coefficients of least entropy of the answers."""
    settings = CoefficientSettings(by, start, clamp, steps, batch, rate, seed)
    deltas = KeptDeltas(inputs.model, lambda name, block: block.deltas)
    return CoefficientTraining(inputs, SharedModels(inputs), deltas, settings).learned()


def adamerging_plus(
    inputs: MergeInputs,
    *,
    by: Wise = "layer",
    density: Annotated[
        float,
        Field(ge=0, le=1, description="Share of the model that each task keeps before signs are elected."),
    ] = 0.2,
    start: Start = 0.3,
    clamp: Clamp = True,
    steps: Steps = 500,
    batch: Batch = 32,
    rate: Rate = 1e-3,
    seed: Seed = 0,
) -> Learned:
    """Returns AdaMerging's merge of the entries that TIES-Merging keeps of each task (AdaMerging++)."""
    model, densities = inputs.model, (density,) * len(inputs.model.tasks)
    least = model_thresholds(model, densities)
    tie = majority(model, least, densities, "mass")
    deltas = KeptDeltas(model, bind(_agreeing, tie), bind(reaching, least))
    settings = CoefficientSettings(by, start, clamp, steps, batch, rate, seed)
    return CoefficientTraining(inputs, SharedModels(inputs), deltas, settings).learned()


def _agreeing(tie: float, name: str, block: Block) -> Tensor:
    """Returns the deltas that have the elected sign, 0 for others, (task, entry)."""
    signs = elected_signs(block.deltas, [1.0] * len(block.deltas), "mass")
    signs = torch.where(signs == 0, tie, signs)
    return torch.where(block.deltas * signs > 0, block.deltas, 0.0)
