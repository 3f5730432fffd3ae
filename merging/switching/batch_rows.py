"""The rows of what modules take and return, whatever tuples and mappings their tensors are in."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError

_Plain = bool | int | float | str
_STATES = {"mems", "state"}  # of XLNet and RWKV, which are lists of tensors


def row_count(batch: Any) -> int:
    """Returns the number of rows of a batch: a tensor, or a mapping of tensors."""
    return len(first_tensor(batch))


def first_tensor(batch: Any) -> Tensor:
    """Returns a batch that is a tensor, or the first tensor of a mapping that has rows of its own.

    A dimension of 1 may stand for all rows. Raises: InputError where there is none.
    """
    if isinstance(batch, Tensor):
        return batch
    found = [value for value in _parts(batch) if isinstance(value, Tensor) and value.dim()]
    if not found:
        raise InputError("a batch is a tensor, or a mapping with a tensor of rows")
    return next((tensor for tensor in found if len(tensor) != 1), found[0])


def _parts(value: Any) -> Iterator[Any]:
    """Yields what a mapping holds, and what mappings in it hold."""
    for part in value.values():
        if isinstance(part, Mapping):
            yield from _parts(part)
        else:
            yield part


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
    if isinstance(value, list) and len(value) == length and all(isinstance(part, _Plain) for part in value):
        chosen = range(length)[rows] if isinstance(rows, slice) else rows.tolist()
        return [value[row] for row in chosen]  # such as the length of each row
    if isinstance(value, tuple | list):
        return _as_sequence(value, [take_rows(part, rows, length) for part in value])
    if isinstance(value, Mapping):
        return like(value, {name: take_rows(part, rows, length) for name, part in value.items()})
    return value


def like(value: Mapping[str, Any], parts: dict[str, Any]) -> Any:
    """Returns parts in a mapping of the type of another one."""
    if type(value) is dict:
        return parts
    if is_dataclass(value):
        return type(value)(**parts)
    kind: Any = type(value)
    try:
        return kind(parts)  # as subclasses of dict and transformers' batches are made
    except TypeError:
        return parts


def _as_sequence(value: Any, parts: Sequence[Any]) -> Any:
    """Returns parts in a list or tuple of the type of another one."""
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


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


def can_move(value: Any, length: int) -> bool:
    """Returns whether the rows of a batch may be put in another order.

    Images or sounds beside tokens may be several of one row and none of another, and stay where they are.
    """
    tensors = (
        [part for part in value.values() if isinstance(part, Tensor)] if isinstance(value, Mapping) else []
    )
    tokens = {part.shape[:2] for part in tensors if not part.is_floating_point()}
    beside = (part for part in tensors if part.is_floating_point() and part.dim() > 2)
    if tokens and any(part.shape[:2] not in tokens for part in beside):
        return False
    return consists_of_rows(value, length)


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


def join_rows(outputs: Sequence[Any], counts: Sequence[int], order: Tensor | None = None) -> Any:
    """Returns several outputs as one with rows in an order; tuples, lists and mappings are joined by parts.

    counts: the rows of each output. A loss and a cache of keys and values are left out of mappings, as they
    belong to one output's weights. Raises: InputError on other parts that have no rows, unless they are the
    same for all outputs.
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        return _joined(outputs, counts, order)
    if isinstance(first, list) and all(
        len(output) == count for output, count in zip(outputs, counts, strict=True)
    ):
        items = [item for output in outputs for item in output]
        return items if order is None else [items[place] for place in order.tolist()]
    if isinstance(first, tuple | list):
        return _as_sequence(first, [join_rows(parts, counts, order) for parts in zip(*outputs, strict=True)])
    if isinstance(first, Mapping):
        own = [name for name, part in first.items() if name not in _STATES and not _is_of_one_batch(part)]
        parts_of = {name: [output[name] for output in outputs] for name in own}
        joined = {name: join_rows(parts, counts, order) for name, parts in parts_of.items()}
        return like(first, joined)
    if is_dataclass(first) and not isinstance(first, type):
        parts = [[getattr(output, field.name) for output in outputs] for field in fields(first)]
        return type(first)(*(join_rows(part, counts, order) for part in parts))
    is_plain = first is None or isinstance(first, _Plain)
    if is_plain and all(type(output) is type(first) and output == first for output in outputs):
        return first
    raise _without_rows(type(first).__name__)


def _is_of_one_batch(part: Any) -> bool:
    """Returns whether a part of an output is a loss, or an object such as a cache."""
    if isinstance(part, Tensor):
        return not part.dim()
    plain: Any = Mapping | tuple | list | bool | int | float | str | None
    return not isinstance(part, plain) and not is_dataclass(part)


def _joined(outputs: Sequence[Tensor], counts: Sequence[int], order: Tensor | None) -> Tensor:
    pairs = zip(outputs, counts, strict=True)
    shapes = {output.shape[1:] for output in outputs}
    entries = {divmod(len(output), count) if output.dim() else (0, 0) for output, count in pairs}  # of a row
    if len(shapes) > 1 or len(entries) > 1 or not all(each and not rest for each, rest in entries):
        if all(torch.equal(output, outputs[0]) for output in outputs[1:]):
            return outputs[0]
        raise _without_rows(f"Tensor {list(outputs[0].shape)}")
    together = torch.cat(list(outputs))
    if order is None:
        return together
    each = together.view(len(order), -1, *together.shape[1:])[order.to(together.device)]
    return each.flatten(0, 1)


def _without_rows(found: str) -> InputError:
    return InputError(
        f"the module's output has a part without rows ({found}), which rows of different mixtures cannot "
        "share; answer rows of one mixture in a batch of their own"
    )


def reordered(output: Any, order: Tensor) -> Any:
    """Returns a module's output with its rows in another order; a cache of keys and values is changed itself.

    Raises: TypeError on a part of unknown type.
    """
    if isinstance(output, Tensor):
        has_rows = output.dim() and len(output) == len(order)
        return output.index_select(0, order.to(output.device)) if has_rows else output
    if isinstance(output, tuple | list):
        parts = [reordered(part, order) for part in output]
        return _as_sequence(output, parts)
    if isinstance(output, Mapping):
        return like(output, {name: reordered(part, order) for name, part in output.items()})
    if hasattr(output, "reorder_cache"):
        output.reorder_cache(order)
    elif output is not None:
        raise TypeError(f"the rows of a {type(output).__name__} are unknown")
    return output


def copied(value: Any) -> Any:
    """Returns a copy of a batch that shares no memory with it, as a module may change what it is given."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return like(value, {name: copied(part) for name, part in value.items()})
    if type(value) in (list, tuple):
        return type(value)(copied(part) for part in value)
    return copy.deepcopy(value)
