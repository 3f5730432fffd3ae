"""Checks that every layer of a module is given the rows of a batch first, as the fused engine requires.

Shapes can't tell where a module puts tokens before rows and both counts fit. So two rows are answered in both
orders: a layer is batch-first where the two halves of its input change places with the rows.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flexswitch.merging.models.replica import replica
from flexswitch.merging.switching.batch_rows import row_count, run, take_rows

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # relative to the largest magnitude
_HALF_TOLERANCE = 3e-2


def distinct_rows(batch: Any) -> tuple[int, int] | None:
    """Returns two rows of a batch that differ, or None where all are equal."""
    count = row_count(batch)
    values = [batch] if isinstance(batch, Tensor) else list(batch.values())
    tensors = [value for value in values if isinstance(value, Tensor) and value.dim() and len(value) == count]
    for row in range(1, count):
        if any(not torch.equal(tensor[0], tensor[row]) for tensor in tensors):
            return 0, row
    return None


def layer_not_batch_first(
    module: nn.Module, names: Collection[str], batch: Any, rows: tuple[int, int]
) -> str | None:
    """Returns the first of some layers that is not given rows first, or None.

    names: the layers, as the module names them; rows: two rows of the batch that differ.
    """
    called: set[str] = set()
    straight, swapped = (
        _layer_inputs(module, names, take_rows(batch, torch.tensor(order), row_count(batch)), called)
        for order in (rows, rows[::-1])
    )
    for (name, one), (_, other) in zip(straight, swapped, strict=True):
        if one is None or other is None or not _is_swapped(one, other):
            return name
    unused = [name for name in names if not any(f"{name}.".startswith(f"{each}.") for each in called)]
    return next((name for name in unused if _is_read(module, name, batch)), None)


def _is_read(module: nn.Module, name: str, batch: Any) -> bool:
    """Returns whether a layer that is not called changes the output, as its weights are read from outside."""
    own = replica(module).eval()
    before = run(own, batch)
    layer = own.get_submodule(name)
    for part, parameter in list(layer.named_parameters(recurse=False)):
        setattr(layer, part, nn.Parameter(torch.full_like(parameter, torch.nan), requires_grad=False))
    return any(
        not torch.equal(one.isnan(), other.isnan())
        for one, other in zip(_tensors(before), _tensors(run(own, batch)), strict=True)
    )


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yields the tensors of a module's output."""
    if isinstance(output, Tensor):
        yield output
    parts = output.values() if isinstance(output, Mapping) else output
    for part in parts if isinstance(output, tuple | list | Mapping) else ():
        yield from _tensors(part)


def _layer_inputs(
    module: nn.Module, names: Collection[str], batch: Any, called: set[str]
) -> list[tuple[str, Tensor | None]]:
    """Returns the longest inputs of each call of the layers, in their order; None for a call without any.

    called: gets the names of the layers that are called.
    """
    own, found = replica(module).eval(), list[tuple[str, Tensor | None]]()
    for part in own.modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            part.max_norm = None  # otherwise it would change its weights, which the replica shares

    def hook(name: str) -> Callable[..., None]:
        def note(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            tensors = [
                value for value in (*inputs, *options.values()) if isinstance(value, Tensor) and value.dim()
            ]
            called.add(name)
            if not tensors:
                found.append((name, None))
            longest = max((len(tensor) for tensor in tensors), default=1)
            found.extend((name, tensor.clone()) for tensor in tensors if len(tensor) == longest > 1)

        return note

    for name in names:
        own.get_submodule(name).register_forward_pre_hook(hook(name), with_kwargs=True)
    run(own, batch)
    return found


def _is_swapped(one: Tensor, other: Tensor) -> bool:
    """Returns whether `other` is `one` with its two halves exchanged; NaN equals anything."""
    if one.shape != other.shape or len(one) % 2:
        return False
    swapped = torch.cat([other[len(other) // 2 :], other[: len(other) // 2]])
    if not one.is_floating_point():
        return torch.equal(one, swapped)
    error, size = (one - swapped).abs(), one.abs().max() if one.numel() else 0.0
    is_rounded = torch.is_autocast_enabled(one.device.type)  # float32 values come from shorter ones too
    tolerance = _HALF_TOLERANCE if is_rounded else _TOLERANCE.get(one.dtype, _HALF_TOLERANCE)
    return not bool((error > tolerance * size).any())
