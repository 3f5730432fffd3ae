"""Checks that every layer of a module is given the rows of a batch first, as the fused engine requires.

It also checks whether the module's output has them first, so that they can be moved and put back.

Shapes can't tell where a module puts tokens before rows and both counts fit. So two rows are answered in both
orders: a layer is batch-first where the two halves of its input change places with the rows.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flexswitch.merging.models.replica import replica
from flexswitch.merging.switching.batch_rows import has_state, reordered, row_count, run, take_rows

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


class RowCheck(NamedTuple):
    """What two rows of a batch have shown.

    bad_layer: the first layer that is not given rows first, or None; output_follows: whether the rows of the
    output change places with those of the batch.
    """

    bad_layer: str | None
    output_follows: bool


def check_rows(module: nn.Module, names: Collection[str], batch: Any, rows: tuple[int, int]) -> RowCheck:
    """Returns whether a module, and some of its layers, treat the first dimension as rows.

    names: the layers, as the module names them; rows: two rows of the batch that differ.
    """
    called: set[str] = set()
    straight, swapped = (
        _layer_inputs(module, names, take_rows(batch, torch.tensor(order), row_count(batch)), called)
        for order in (rows, rows[::-1])
    )
    follows = _follows(straight.output, swapped.output)
    for (name, one), (_, other) in zip(straight.inputs, swapped.inputs, strict=True):
        if one is None or other is None or not _is_swapped(one, other):
            return RowCheck(name, follows)
    unused = [name for name in names if not any(f"{name}.".startswith(f"{each}.") for each in called)]
    return RowCheck(next((name for name in unused if _is_read(module, name, batch)), None), follows)


def _follows(one: Any, other: Any) -> bool:
    """Returns whether an output of two rows is another one with its rows exchanged."""
    try:
        back = reordered(other, torch.tensor([1, 0]))
    except TypeError:
        return False
    pairs = list(zip_longest(_tensors(one), _tensors(back)))
    return all(
        first is not None
        and second is not None
        and first.shape[:1] in ((), (2,))
        and _is_close(first, second)
        for first, second in pairs
    )


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


class _Pass(NamedTuple):
    """What a module answered, and the inputs of its layers in their order; None for a call that has none."""

    output: Any
    inputs: list[tuple[str, Tensor | None]]


def _layer_inputs(module: nn.Module, names: Collection[str], batch: Any, called: set[str]) -> _Pass:
    """Returns a pass of a batch, with the longest inputs of each call of the layers.

    A call that is given a cache, or changes what the layer itself holds, counts as one without inputs, as
    rows cannot be answered apart by it.
    called: gets the names of the layers that are called.
    """
    own, found = replica(module).eval(), list[tuple[str, Tensor | None]]()
    held = dict[str, list[Tensor]]()
    for part in own.modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            part.max_norm = None  # otherwise it would change its weights, which the replica shares

    def hook(name: str) -> Callable[..., None]:
        def note(layer: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            tensors = [
                value for value in (*inputs, *options.values()) if isinstance(value, Tensor) and value.dim()
            ]
            called.add(name)
            if not tensors or has_state((*inputs, *options.values())):
                found.append((name, None))
            longest = max((len(tensor) for tensor in tensors), default=1)
            found.extend((name, tensor.clone()) for tensor in tensors if len(tensor) == longest > 1)
            held[name] = [tensor.clone() for tensor in _held(layer)]

        return note

    def compare(name: str) -> Callable[..., None]:
        def note(layer: nn.Module, _: object, __: object) -> None:
            if not _are_equal(held[name], list(_held(layer))):
                found.append((name, None))

        return note

    for name in names:
        layer = own.get_submodule(name)
        layer.register_forward_pre_hook(hook(name), with_kwargs=True)
        layer.register_forward_hook(compare(name))
    return _Pass(run(own, batch), found)


def _held(layer: nn.Module) -> Iterator[Tensor]:
    """Yields the tensors that a layer and its parts hold beside parameters, such as a recurrence's state."""
    for part in layer.modules():
        held = (*vars(part).values(), *part.buffers(recurse=False))
        yield from (value for value in held if isinstance(value, Tensor))


def _are_equal(ones: list[Tensor], others: list[Tensor]) -> bool:
    return len(ones) == len(others) and all(map(torch.equal, ones, others))


def _is_swapped(one: Tensor, other: Tensor) -> bool:
    """Returns whether `other` is `one` with its two halves exchanged; NaN equals anything."""
    if one.shape != other.shape or len(one) % 2:
        return False
    return _is_close(one, torch.cat([other[len(other) // 2 :], other[: len(other) // 2]]))


def _is_close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    error, finite = (one - other).abs(), one[one.isfinite()]
    size = finite.abs().max() if finite.numel() else 0.0
    is_rounded = torch.is_autocast_enabled(one.device.type)  # float32 values come from shorter ones too
    tolerance = _HALF_TOLERANCE if is_rounded else _TOLERANCE.get(one.dtype, _HALF_TOLERANCE)
    return not bool((error > tolerance * size).any())
