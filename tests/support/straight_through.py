"""Gates and bit-widths as docs/methods.md §4 defines them: plain torch operations, differentiated by autograd."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from support.checkpoints import memory_pair
from torch import Tensor

from flexswitch.merging.flex_switch.delta_rows import DeltaRows, read_delta_rows
from flexswitch.merging.flex_switch.gated_tensor import Gates

Floats = NDArray[np.float32]
_EDGE = 1e-3  # of a level: nearer to where rounding jumps, float32 and float64 may round apart


class Plain(NamedTuple):
    """Leaves of an autograd graph in float64: thresholds (row,), scales and shares (candidate,)."""

    thresholds: Tensor
    scales: Tensor
    shares: Tensor


def delta_rows(delta: Floats, name: str = "w") -> DeltaRows:
    """Returns a tensor's delta rows, read as any other, from a fine-tune of zeros."""
    changed = torch.from_numpy(delta.copy())
    tensor = read_delta_rows(memory_pair({name: torch.zeros_like(changed)}, {name: changed}), name)
    assert tensor is not None
    return tensor


def plain_leaves(gates: Gates) -> Plain:
    """Returns the numbers that are trained, ready for autograd."""
    values = (gates.thresholds, gates.scales, gates.shares)
    return Plain(*(torch.from_numpy(value.astype(np.float64)).requires_grad_() for value in values))


def plain_values(delta: Tensor, gates: Gates, plain: Plain) -> Tensor:
    """Returns the gated values of a tensor's changed rows, (row, column), in float64.

    The hard gate forward and the sigmoid's slope backward; rounding as if it were not there backward. What
    did not change passes no gate, whatever the threshold.
    """
    delta = delta.double()
    soft = torch.sigmoid((delta.abs() - plain.thresholds[:, None]) / gates.width)
    hard = (delta.abs() > plain.thresholds[:, None]).double()
    gate = (soft + (hard - soft).detach()) * (delta != 0)
    mixed = sum(
        share * plain_quantised(delta, bits, scale)
        for bits, scale, share in zip(gates.bits.tolist(), plain.scales, plain.shares, strict=True)
    )
    return gate * mixed


def plain_quantised(values: Tensor, bits: int, scale: Tensor) -> Tensor:
    """Returns s · sign of each value, or the nearest of 2^bits even levels in s · [−1, 1] without a zero."""
    if bits == 1:
        return scale * values.sign()
    steps = 2**bits - 1
    places = ((values / scale).clamp(-1, 1) + 1) / 2 * steps  # 0 … steps
    rounded = places + (torch.floor(places + 0.5) - places).detach()
    return scale * (2 * rounded / steps - 1)


def plain_weights(base: Tensor, tensor: DeltaRows, gates: Gates, plain: Plain) -> Tensor:
    """Returns a whole tensor's weights, float64, in its shape; the rows that did not change are the base's."""
    rows = base.double().reshape(-1, tensor.columns)
    values = plain_values(torch.from_numpy(tensor.delta).reshape(-1, tensor.columns), gates, plain)
    return rows.index_add(0, torch.from_numpy(tensor.rows), values).reshape(base.shape)


def away_from_edges(delta: Floats, bits: list[int], scales: list[float]) -> Floats:
    """Returns the delta with a value beyond all scales in place of any that lies where rounding jumps."""
    delta, far = delta.copy(), np.float32(1.375 * max(scales))
    for width, scale in zip(bits, scales, strict=True):
        places = (delta.astype(np.float64) / np.float32(scale) + 1) / 2 * (2**width - 1) + 0.5
        inside = np.abs(delta) < 1.01 * scale
        if width > 1:
            delta[inside & (np.abs(places - np.round(places)) < _EDGE) | (delta == 0)] = far
    return delta
