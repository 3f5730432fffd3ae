"""The rows of what modules take and return, whatever tuples and mappings their tensors are in."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def row_count(batch: Any) -> int:
    """Returns the number of rows of a batch: a tensor, or a mapping of tensors."""
    return len(first_tensor(batch))


def first_tensor(batch: Any) -> Tensor:
    """Returns a batch that is a tensor, or the first tensor of a mapping."""
    return batch if isinstance(batch, Tensor) else next(iter(batch.values()))


def run(module: nn.Module, batch: Any) -> Any:
    """Returns a module's output for a batch; the tensors of a mapping are keyword arguments."""
    return module(batch) if isinstance(batch, Tensor) else module(**batch)


def take_rows(value: Any, rows: Tensor, length: int) -> Any:
    """Returns a value with only some rows of each tensor whose first dimension is `length`."""
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if value.dim() and len(value) == length else value
    if isinstance(value, tuple | list):
        return type(value)(take_rows(part, rows, length) for part in value)
    if isinstance(value, Mapping):
        return {name: take_rows(part, rows, length) for name, part in value.items()}
    return value


def join_rows(outputs: Sequence[Any], order: Tensor) -> Any:
    """Returns several outputs as one with rows in the given order; tuples and mappings are joined by parts.

    Parts of a mapping without rows are dropped: a cache of keys and values belongs to one output's weights.
    """
    first = outputs[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.cat(list(outputs))[order.to(first.device)]
    if isinstance(first, tuple):
        return tuple(join_rows(list(parts), order) for parts in zip(*outputs, strict=True))
    joined = {
        name: join_rows([output[name] for output in outputs], order)
        for name, part in first.items()
        if part is None or isinstance(part, Tensor | tuple | Mapping)
    }
    return type(first)(**joined)
