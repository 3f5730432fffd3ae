"""Rounds computed weights to an output's dtype; a finite weight never becomes infinite."""

import math

import torch
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.dtypes import DTYPE_NAMES
from flexswitch.merging.checkpoints.floating import is_floating

_WIDER = {torch.float16: "bfloat16", torch.bfloat16: "float32"}


def rounded(values: Tensor, before: Tensor, dtype: torch.dtype, tensor: str) -> Tensor:
    """Returns values in a dtype. before: the weights that they were computed from; tensor: its name.

    Raises: InputError where a value is not finite in that dtype and the weight before was finite.
    """
    found = values.to(dtype)
    if (values is before and found is values) or not found.numel() or not is_floating(DTYPE_NAMES[dtype]):
        return found
    checked = found.to(torch.float32) if dtype.itemsize == 1 else found
    if not all(math.isfinite(bound) for bound in torch.stack(torch.aminmax(checked)).tolist()):  # one pass
        made = (~torch.isfinite(checked) & torch.isfinite(before.to(torch.float32))).reshape(-1).nonzero()
        if len(made):
            refuse_overflow(tensor, float(values.reshape(-1)[made[0]]), dtype)
    return found


def refuse_overflow(tensor: str, value: float, dtype: torch.dtype) -> None:
    """Raises: InputError saying that a value has no finite form in a dtype."""
    known_as = str(dtype).removeprefix("torch.")
    wider = _WIDER.get(dtype, "bfloat16" if dtype.itemsize == 1 else None)
    advice = f"use --dtype {wider}, or the model in {wider}" if wider else "the task vector is too large"
    raise InputError(
        f"tensor '{tensor}': the value {value:.6g} is beyond {known_as}, whose largest is "
        f"{torch.finfo(dtype).max:.6g}; {advice}"
    )
