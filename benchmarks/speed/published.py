"""The steps of the published T-Switch code, reimplemented: topk a side, Python loops over bitarrays.

Source of the steps: Qi et al. 2025 (arXiv 2412.00054) and what its released code does. A flag bit for each
group of 4 entries, then 4 mask bits and one sign bit a kept entry for each group that keeps any.
"""

import torch
from bitarray import bitarray
from torch import Tensor

GROUP = 4


def binarise(delta: Tensor, drop: float) -> tuple[Tensor, float]:
    """Returns the ternary tensor of the largest entries of each sign, and its scale."""
    kept = torch.zeros_like(delta)
    for sign in (1, -1):
        side = torch.where(sign * delta > 0, sign * delta, torch.zeros_like(delta))
        count = int((1 - drop) * int((side > 0).sum()))
        if count:
            least = torch.topk(side.view(-1), count).values[-1]
            kept += torch.where(side >= least, delta, torch.zeros_like(delta))
    signs = torch.sign(kept)
    return signs, float(kept.norm() / signs.norm())


def pack(signs: Tensor) -> tuple[bitarray, bitarray]:
    """Returns the flags, and the flagged groups' mask and sign bits in turn."""
    flags, payload = bitarray(), bitarray()
    for group in signs.view(-1, GROUP).tolist():
        kept = [value != 0 for value in group]
        flags.append(any(kept))
        if any(kept):
            payload.extend(kept)
            payload.extend([value > 0 for value in group if value])
    return flags, payload


def unpack(flags: bitarray, payload: bitarray, entries: int) -> Tensor:
    """Returns the ternary tensor, flat."""
    values = [0.0] * entries
    place = 0
    for group, flag in enumerate(flags):
        if flag:
            kept = payload[place : place + GROUP]
            place += GROUP
            for offset in range(GROUP):
                if kept[offset]:
                    values[GROUP * group + offset] = 1.0 if payload[place] else -1.0
                    place += 1
    return torch.tensor(values)
