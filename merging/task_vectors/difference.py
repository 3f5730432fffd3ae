"""Fine-tuned minus base in float32, one block at a time."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.compiled import compiled, few
from flexswitch.codecs.sparse import FloatArray

Halves = NDArray[np.uint16]

_LARGEST = np.finfo(np.float32).max


def difference(base: Tensor, finetuned: Tensor) -> tuple[FloatArray, bool]:
    """Returns float32(fine-tuned) − float32(base), flat, and whether all of it is finite.

    Entries of the same bits have the difference 0, even if they are infinite or NaN.
    """
    delta = np.empty(len(base), np.float32)
    if few(len(base)):
        before, after = base.to(torch.float32).numpy(), finetuned.to(torch.float32).numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(after, before, out=delta)
        before, after = before.view(np.uint32), after.view(np.uint32)
        finite = bool(np.isfinite(delta).all())
    elif base.dtype == finetuned.dtype == torch.bfloat16:
        before, after = base.view(torch.uint16).numpy(), finetuned.view(torch.uint16).numpy()
        finite = _subtract_bfloats(before, after, delta)
    else:
        wide, changed = base.to(torch.float32).numpy(), finetuned.to(torch.float32).numpy()
        finite = _subtract_floats(wide, changed, delta)
        before, after = wide.view(np.uint32), changed.view(np.uint32)
    if not finite:
        delta[before == after] = 0
        finite = bool(np.isfinite(delta).all())
    return delta, finite


def add_delta(base: Tensor, delta: Tensor) -> Tensor:
    """Returns base + delta in float32; where the delta is zero, the base unchanged, even −0."""
    return torch.where(delta == 0, base, base + delta)


@compiled
def _subtract_floats(base: FloatArray, finetuned: FloatArray, delta: FloatArray) -> bool:
    finite = True
    for index in range(delta.size):
        value = finetuned[index] - base[index]
        delta[index] = value
        finite &= abs(value) <= _LARGEST
    return finite


@compiled
def _subtract_bfloats(base: Halves, finetuned: Halves, delta: FloatArray) -> bool:
    finite = True
    for index in range(delta.size):
        value = _widened(finetuned[index]) - _widened(base[index])
        delta[index] = value
        finite &= abs(value) <= _LARGEST
    return finite


@compiled
def _widened(half: Any) -> Any:
    """Returns the float32 of a bfloat16's bit pattern."""
    return np.uint32(np.uint32(half) << np.uint32(16)).view(np.float32)
