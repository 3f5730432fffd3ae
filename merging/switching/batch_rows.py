"""The rows of what modules take and return, whatever tuples and mappings their tensors are in."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError


def row_count(batch: Any) -> int:
    """Returns the number of rows of a batch: a tensor, or a mapping of tensors."""
    return len(first_tensor(batch))


def first_tensor(batch: Any) -> Tensor:
    """Returns a batch that is a tensor, or the first tensor of a mapping."""
    return batch if isinstance(batch, Tensor) else next(iter(batch.values()))


def row_length(batch: Any) -> int:
    """Returns the tokens of a row of a batch, with padding; 1 where its first tensor has one entry a row."""
    first = first_tensor(batch)
    return first.shape[1] if first.dim() > 1 else 1


def run(module: nn.Module, batch: Any) -> Any:
    """Returns a module's output for a batch; the tensors of a mapping are keyword arguments."""
    return module(batch) if isinstance(batch, Tensor) else module(**batch)


def take_rows(value: Any, rows: Tensor | slice, length: int) -> Any:
    """Returns a value with only some rows of each tensor whose first dimension is `length`."""
    if isinstance(value, Tensor):
        if not value.dim() or len(value) != length:
            return value
        return value[rows] if isinstance(rows, slice) else value.index_select(0, rows.to(value.device))
    if isinstance(value, tuple | list):
        return type(value)(take_rows(part, rows, length) for part in value)
    if isinstance(value, Mapping):
        return {name: take_rows(part, rows, length) for name, part in value.items()}
    return value


def consists_of_rows(value: Any, length: int) -> bool:
    """Returns whether all tensors of a batch have `length` rows, so that they can be put in another order.

    What belongs to rows but does not have them first, such as the patches of all images or a cache of keys
    and values, stays where it is, and would then be read by other rows.
    """
    if isinstance(value, Tensor):
        return value.dim() > 0 and len(value) == length
    if isinstance(value, tuple | list | Mapping):
        parts = value.values() if isinstance(value, Mapping) else value
        return all(consists_of_rows(part, length) for part in parts)
    return value is None or isinstance(value, bool | int | float | str)


def has_state(value: Any) -> bool:
    """Returns whether an argument is an object that a call may change, such as a cache of keys and values.

    A call for some of the rows would leave it as no other call expects it. So is a list of tensors, as which
    RWKV's layers are given their state.
    """
    if isinstance(value, list) and any(isinstance(part, Tensor) for part in value):
        return True
    if isinstance(value, tuple | list | Mapping):
        return any(has_state(part) for part in (value.values() if isinstance(value, Mapping) else value))
    plain = Tensor | bool | int | float | str | torch.dtype | torch.device
    return value is not None and not isinstance(value, plain)


def check_rows_apart(batch: Any, length: int) -> None:
    """Raises: InputError naming a part of a batch that is neither of its rows nor one for all of them."""
    for name, value in batch.items() if isinstance(batch, Mapping) else ():
        is_shared = isinstance(value, Tensor) and (value.dim() == 0 or len(value) == 1)
        if not is_shared and not consists_of_rows(value, length):
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"the rows of this batch have different tasks and are answered apart, but '{name}' ({shape}) "
                f"does not have its {length} rows first; answer rows of one mixture in a batch of their own"
            )


def join_rows(outputs: Sequence[Any], order: Tensor | None = None) -> Any:
    """Returns several outputs as one with rows in an order; tuples and mappings are joined by parts.

    Parts of a mapping without rows are dropped: a cache of keys and values belongs to one output's weights.
    """
    first = outputs[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        together = torch.cat(list(outputs))
        return together if order is None else together[order.to(first.device)]
    if isinstance(first, tuple):
        return tuple(join_rows(list(parts), order) for parts in zip(*outputs, strict=True))
    joined = {
        name: join_rows([output[name] for output in outputs], order)
        for name, part in first.items()
        if part is None or isinstance(part, Tensor | tuple | Mapping)
    }
    return type(first)(**joined)


def reordered(output: Any, order: Tensor) -> Any:
    """Returns a module's output with its rows in another order; a cache of keys and values is changed itself.

    Raises: TypeError on a part of unknown type.
    """
    if isinstance(output, Tensor):
        has_rows = output.dim() and len(output) == len(order)
        return output.index_select(0, order.to(output.device)) if has_rows else output
    if isinstance(output, tuple | list):
        parts = [reordered(part, order) for part in output]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    if isinstance(output, Mapping):
        return type(output)(**{name: reordered(part, order) for name, part in output.items()})
    if hasattr(output, "reorder_cache"):
        output.reorder_cache(order)
    elif output is not None:
        raise TypeError(f"the rows of a {type(output).__name__} are unknown")
    return output
