"""Concrete subspace learning: task arithmetic and AdaMerging under a mask that all tasks share.

Source: Tang et al. 2023, "Concrete Subspace Learning" (arXiv 2312.06173), and the code of FusionBench;
docs/methods.md §6.11.
"""

from typing import Annotated

from pydantic import Field

from flexswitch.codecs.format.training_file import Arrays
from flexswitch.merging.exemplar_merges.adamerging import Batch, Clamp, Rate, Seed, Start, Steps, Wise
from flexswitch.merging.exemplar_merges.coefficient_training import CoefficientSettings, CoefficientTraining
from flexswitch.merging.exemplar_merges.concrete_mask import Final
from flexswitch.merging.exemplar_merges.inputs import Learned, MergeInputs
from flexswitch.merging.exemplar_merges.masked_merge import MaskedMerge

_INNER = "inner/"

Temperature = Annotated[float, Field(gt=0, description="Temperature of the mask's distribution.")]
MaskRate = Annotated[float, Field(gt=0, description="Learning rate of Adam for the mask.")]
FinalMask = Annotated[
    Final, Field(description="The mask that is used: one more sample, or the sigmoid of the logits (mean).")
]


def concrete_ta(
    inputs: MergeInputs,
    *,
    lambda_: Annotated[float, Field(description="Scale of the sum of the masked task vectors.")] = 0.3,
    temperature: Temperature = 0.5,
    final: FinalMask = "sample",
    steps: Steps = 2000,
    batch: Batch = 16,
    rate: MaskRate = 1e-3,
    seed: Seed = 0,
) -> Learned:
    """Returns θ + λ m ⊙ Σ_k τ_k with the mask m of least entropy of the answers."""
    merge = MaskedMerge(inputs, lambda_, temperature, rate, batch, seed)
    before = merge.entropy(None)
    done = merge.restored(None if inputs.training is None else inputs.training.read(merge.check))
    merge.run(steps, done, lambda step: merge.mask_step(step, merge.start, step), dict)
    masks = merge.final_masks(final)
    after = merge.entropy(masks)
    deltas = merge.masked_deltas(masks)
    if not after < before:
        merge.note_kept(before, after)
        deltas = merge.deltas
    figures = {"entropy before": before, "entropy after": min(before, after)}
    return merge.learned(deltas, merge.start, figures)


def concrete_am(
    inputs: MergeInputs,
    *,
    by: Wise = "layer",
    start: Start = 0.3,
    clamp: Clamp = False,
    temperature: Temperature = 0.5,
    final: FinalMask = "sample",
    mask_steps: Annotated[int, Field(ge=1, description="Training steps of the mask.")] = 1000,
    mask_rate: MaskRate = 1e-3,
    inner_rate: Annotated[
        float,
        Field(gt=0, description="Learning rate of the coefficients' one step in each step of the mask."),
    ] = 1.0,
    steps: Steps = 1000,
    batch: Batch = 16,
    rate: Rate = 1e-3,
    seed: Seed = 0,
) -> Learned:
    """Returns θ + m ⊙ Σ_k λ_k τ_k: a mask that suits λ after one step, then the λ of AdaMerging under it."""
    merge = MaskedMerge(inputs, start, temperature, mask_rate, batch, seed)
    before = merge.entropy(None)
    settings = CoefficientSettings(by, start, clamp, mask_steps, batch, inner_rate, seed)
    inner = CoefficientTraining(inputs, merge.models, merge.deltas, settings)
    stored = None if inputs.training is None else inputs.training.read(merge.check)
    done = merge.restored(stored)
    if stored is not None and f"{_INNER}values" in stored:
        inner.restore({name.removeprefix(_INNER): each for name, each in stored.items() if _INNER in name})

    def one_step(step: int) -> float:
        coefficients = merge.coefficient_step(step, inner, 2 * step)
        return merge.mask_step(step, coefficients, 2 * step + 1)

    def state_of_inner() -> Arrays:
        return {_INNER + name: each for name, each in inner.arrays().items()}

    merge.run(mask_steps, done, one_step, state_of_inner)
    deltas = merge.masked_deltas(merge.final_masks(final))
    settings = CoefficientSettings(by, start, clamp, steps, batch, rate, seed)
    training = CoefficientTraining(inputs, merge.models, deltas, settings)
    under_mask = stored if stored is not None and "values" in stored else None
    figures = training.run(under_mask, merge.arrays(mask_steps))
    if not figures["entropy after"] < before:
        merge.note_kept(before, figures["entropy after"])
        return merge.learned(merge.deltas, merge.start, {"entropy before": before, "entropy after": before})
    return merge.learned(deltas, training.coefficients(), figures | {"entropy before": before})
