"""Refits scales once the thresholds are fixed; masks do not change."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.threads import ParallelMap
from flexswitch.merging.flex_switch.delta_rows import DeltaRows, Quantisation
from flexswitch.merging.flex_switch.gated_model import GatedModel, Loss
from flexswitch.merging.flex_switch.gated_tensor import summed
from flexswitch.merging.flex_switch.parameters import Adam
from flexswitch.merging.flex_switch.training_step import hard_gates, set_gates

# Tried in turn: a large rate moves away from scales that are nearly right.
RATES = (0.01, 0.001, 0.0001)


def refit_scales(
    tensors: Sequence[DeltaRows],
    quantised: Sequence[Quantisation],
    model: GatedModel,
    batches: Callable[[int], Sequence[Loss]],
    steps: int,
    rate: float,
    parallel_map: ParallelMap,
) -> list[Quantisation]:
    """Returns the quantisation with scales trained by Adam, at a rate that falls linearly to 0."""
    log_scales, adam = np.log([kept.scale for kept in quantised]), Adam()
    for step in range(steps):
        gates = hard_gates(tensors, _with_scales(quantised, np.exp(log_scales)))
        set_gates(model, gates, parallel_map)
        found = model.backward_all(batches(step), parallel_map)
        slopes = np.zeros(len(tensors))
        for number in range(len(tensors)):
            slope = summed([of_units[number] for _, of_units in found])
            if slope is not None:
                slopes[number] = slope.by_scale[0] * gates[number].scales[0]
        adam.update({"scales": log_scales}, {"scales": slopes}, {"scales": rate * (1 - step / steps)})
    return _with_scales(quantised, np.exp(log_scales))


def _with_scales(quantised: Sequence[Quantisation], scales: NDArray[np.float64]) -> list[Quantisation]:
    return [
        replace(kept, scale=float(np.float32(scale))) for kept, scale in zip(quantised, scales, strict=True)
    ]
