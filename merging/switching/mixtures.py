"""A mixture of tasks, and the weights that it stands for."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.switching.delta_matrix import DeltaMatrix
from flexswitch.merging.task_vectors.rounding import rounded

Factors = tuple[tuple[int, float], ...]  # (task, λ·w) of the tasks in a mixture, which tell it from others
_ROUNDING = 1e-6  # of the shares of a mixture, which are float32
_LARGEST_SHARE = 2.0

Weights = Mapping[str, Tensor]  # tensor → θ + λ Σ w τ under one mixture, in the base's shape and dtype


def factors_of(mixture: FloatArray) -> Factors:
    """Returns the tasks of a mixture, (task,), with their factors."""
    return tuple((int(task), float(mixture[task])) for task in np.flatnonzero(mixture))


def parts_of(mixture: Factors, scale: float) -> list[tuple[Factors, float]]:
    """Returns tasks alone, with the factor `scale`, and each one's share in a mixture of several.

    The shares add up to 1: the base, which has no factors, has what is left. Empty where the sum would be a
    difference of larger ones, and of one task.
    """
    if len(mixture) < 2:
        return []
    shares = [(((task, scale),), factor / scale) for task, factor in mixture]
    left = 1 - sum(share for _, share in shares)
    found: list[tuple[Factors, float]] = [*shares, *([((), left)] if abs(left) > _ROUNDING else [])]
    return found if max(abs(share) for _, share in found) <= _LARGEST_SHARE else []


def mixed(base: Tensor, tasks: Sequence[tuple[Mapping[str, DeltaMatrix], float]], name: str) -> Tensor:
    """Returns base + Σ factor · τ, computed in float32 or wider and rounded once to the base's dtype.

    tasks: each task's delta matrices, and its factor; name: the tensor's.
    """
    own = [(deltas[name], factor) for deltas, factor in tasks if name in deltas]
    if base.dtype == torch.float32 and base.device.type == "cpu":
        found = base.detach().clone(memory_format=torch.contiguous_format)
        for delta, factor in own:
            delta.add_to(found.view(delta.shape).numpy(), factor)
        return found
    total = torch.zeros(base.numel(), device=base.device)
    for delta, factor in own:
        total.add_(delta.dense().to(base.device).reshape(-1), alpha=factor)
    return rounded_sum(base.detach(), total.view(base.shape), name)


def rounded_sum(base: Tensor, delta: Tensor, name: str) -> Tensor:
    """Returns base + delta, computed in float32 or wider and rounded once to the base's dtype.

    name: the tensor's. Raises: InputError where the sum overflows, which is checked on the CPU only, since a
    GPU would have to be waited for.
    """
    total = base.to(torch.promote_types(base.dtype, torch.float32)) + delta.to(base.device)
    return rounded(total, base, base.dtype, name) if total.device.type == "cpu" else total.to(base.dtype)
