"""Takes rows out of what a module is given, and joins what it returns."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def take_rows(value: Any, rows: Tensor, length: int) -> Any:
    """Returns the rows of every tensor in a value whose first dimension is `length`; all else as it is."""
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if value.dim() and len(value) == length else value
    if isinstance(value, tuple | list):
        return type(value)(take_rows(part, rows, length) for part in value)
    if isinstance(value, Mapping):
        return {name: take_rows(part, rows, length) for name, part in value.items()}
    return value


def join_rows(outputs: Sequence[Any], order: Tensor) -> Any:
    """Returns several outputs as one, rows in that order; tuples and mappings by their parts.

    Of a mapping, what has no rows is left out: keys and values that a model caches belong to its weights.
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
