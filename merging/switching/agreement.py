"""Whether outputs of a module agree: the rows of each mixture are those of the module with its weights."""

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexswitch.merging.switching.batch_plan import BatchPlan

# Of exact dtypes no number may be further off than this, over the largest; shorter ones round each layer, and
# the mean of all numbers, and of each token's, may not be further off than these, over the mean of all.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_MEAN_TOLERANCE, _TOKEN_TOLERANCE = 5e-2, 0.2
_HUGE = 1e4  # where numbers are masks rather than activations


def agree(found: Any, expected: Mapping[int, Any], plan: BatchPlan) -> bool:
    """Returns whether the rows of an output are those of the outputs under their mixtures.

    expected: mixture → what all rows are under it. A number without rows, such as a loss, is not compared;
    another part without rows has to be the same under all mixtures. False where no part has rows.
    """
    tensors = list(_tensors(found, plan.count))
    alone = {number: list(_tensors(output, plan.count)) for number, output in expected.items()}
    mask = None if plan.padding is None else torch.from_numpy(plan.padding.mask)
    if any(len(others) != len(tensors) for others in alone.values()):
        return False
    compared = 0
    for place, tensor in enumerate(tensors):
        others = {number: parts[place] for number, parts in alone.items()}
        if any(other.shape != tensor.shape for other in others.values()):
            return False
        axis = _row_axis(tensor, plan.count)
        if axis is None:
            if tensor.dim() and not all(_is_close(tensor, other) for other in others.values()):
                return False
            continue
        compared += 1
        for number, other in others.items():
            own = torch.from_numpy(np.flatnonzero(plan.mixture_of == number))
            if not _is_close(*(_rows_of(each, axis, plan.count, own, mask) for each in (tensor, other))):
                return False
    return compared > 0


def distance(one: Any, other: Any, count: int) -> float:
    """Returns how far two outputs are apart over their size, of the part where they are furthest.

    Raises: ValueError where they have other parts, RuntimeError where these have other shapes.
    """
    found = [0.0]
    for first, second in zip(_tensors(one, count), _tensors(other, count), strict=True):
        a, b = first.double(), second.double()
        finite = a.isfinite() & b.isfinite()
        usual = finite & (b.abs() < _HUGE)
        used = usual if usual.any() else finite
        size = float(b[used].abs().sum())
        if size:
            found.append(float((a[used] - b[used]).abs().sum()) / size)
    return max(found)


def _row_axis(tensor: Tensor, count: int) -> int | None:
    """Returns the dimension of a tensor over the rows; the first may be over several entries of each row."""
    if tensor.dim() and len(tensor) and len(tensor) % count == 0:
        return 0
    return next((axis for axis, size in enumerate(tensor.shape) if size == count), None)


def _rows_of(tensor: Tensor, axis: int, count: int, rows: Tensor, mask: Tensor | None) -> Tensor:
    """Returns some rows of a tensor; of its tokens, those that are not padding. mask: (row, token)."""
    first = tensor.movedim(axis, 0)
    first = first.reshape(count, len(first) // count, *first.shape[1:])  # (row, 1 or entry, …)
    if first.shape[1] == 1:
        first = first[:, 0]
    own = first[rows.to(first.device)]
    if mask is not None and own.dim() > 1 and own.shape[1] == mask.shape[1]:
        return own[mask[rows].to(own.device)]
    return own


def _tensors(output: Any, count: int) -> Iterator[Tensor]:
    """Yields the tensors of an output; items of the rows as one tensor."""
    if isinstance(output, Tensor):
        yield torch.view_as_real(output.detach()) if output.is_complex() else output.detach()
        return
    if isinstance(output, np.ndarray | np.generic | float | int):
        yield torch.as_tensor(output)
        return
    if isinstance(output, list | tuple) and len(output) == count:
        parts = [torch.as_tensor(part) for part in output if isinstance(part, Tensor | float | int | list)]
        shapes = {part.shape for part in parts}
        if len(parts) == count and len(shapes) == 1 and _row_axis(parts[0], count) is None:
            yield torch.stack(parts)
            return
    values: Any = ()
    if isinstance(output, Mapping):
        values = output.values()
    elif isinstance(output, list | tuple):
        values = output
    elif is_dataclass(output) or isinstance(output, SimpleNamespace):
        values = vars(output).values()
    for part in values:
        yield from _tensors(part, count)


def _is_close(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, other)
    is_rounded = torch.is_autocast_enabled(one.device.type) or one.dtype not in _TOLERANCE
    exact = torch.isfinite(other)
    if not torch.equal(torch.isfinite(one), exact):
        return False
    zero = torch.zeros((), dtype=torch.float64, device=one.device)
    a, b = (torch.where(exact, each.double(), zero) for each in (one, other))
    huge = b.abs() >= _HUGE
    error, size = (a - b).abs(), b.abs()
    usual = size[~huge] if bool((exact & ~huge).any()) else size
    if not usual.numel():
        return True
    if is_rounded:
        error = torch.where(huge, error / size.clamp(min=1) * usual.mean(), error)
        of_token = error.mean(-1) if error.dim() > 1 else error
        return bool(error.mean() <= _MEAN_TOLERANCE * usual.mean()) and bool(
            of_token.max() <= _TOKEN_TOLERANCE * usual.mean()
        )
    allowed = _TOLERANCE[one.dtype] * torch.where(huge, size, usual.max())
    return bool((error <= allowed).all())
