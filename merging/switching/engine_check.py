"""Checks that the fused engine answers a kind of batch as the module does that has each mixture's weights.

A module may do what no list of its layers tells: read a weight without calling its layer, put tokens before
rows, read padding, keep a state, route tokens to experts, call compiled code. So a few rows of the first
batch of each kind are answered both ways, and their outputs compared.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from threading import RLock
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flexswitch.codecs.errors import FlexswitchError, InputError, NotByRowsError
from flexswitch.merging.switching.activations import Ids
from flexswitch.merging.switching.batch_plan import BatchPlan
from flexswitch.merging.switching.batch_rows import consists_of_rows, like, take_rows
from flexswitch.merging.switching.fused_engine import FusedEngine
from flexswitch.merging.switching.grouped_engine import GroupedEngine
from flexswitch.merging.switching.padding import config_of
from flexswitch.merging.switching.request import Request

FAILURES = (InputError, RuntimeError, ValueError, IndexError, TypeError)  # where shapes do not fit

_MIXTURES = 3  # that are compared
_ROWS = 8  # of a batch that is compared as a whole
# A relative error: the largest of all numbers, or of a shorter dtype the mean, as these round each layer.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_MEAN_TOLERANCE = 5e-2

_MEDIA = ("image_token_id", "image_token_index", "video_token_id", "audio_token_id", "audio_token_index")


class Manner(NamedTuple):
    """How the fused engine may answer: whether layers skip padding, and rows of one mixture are joined."""

    skips: bool
    moves: bool


class _NotComparedError(Exception):
    """The module itself does not answer."""


class _Checked(NamedTuple):
    """What a check has shown, None for no manner, and the batches for which it holds."""

    manner: Manner | None
    mixtures: int
    is_padded: bool
    has_heads: bool
    changed: frozenset[str]

    def covers(self, other: "_Checked") -> bool:
        """Returns whether it holds for what another one is about."""
        return (
            min(self.mixtures, 2) >= min(other.mixtures, 2)
            and (self.is_padded or not other.is_padded)
            and (self.has_heads or not other.has_heads)
            and self.changed >= other.changed
        )


class EngineCheck:
    """Which manner of the fused engine suits which kind of batch. Thread-safe: threads take turns."""

    def __init__(self, fused: FusedEngine, grouped: GroupedEngine) -> None:
        self._fused, self._grouped, self._lock = fused, grouped, RLock()
        config = config_of(fused.module)
        self._media = [token for name in _MEDIA if isinstance(token := getattr(config, name, None), int)]
        self._checked: dict[tuple[Any, ...], list[_Checked]] = {}

    def manner(self, request: Request, plan: BatchPlan) -> Manner | None:
        """Returns how the fused engine answers a batch, None where it does not."""
        if not plan.changed and plan.heads is None:  # the base answers
            return Manner(skips=True, moves=False)
        kind = self._kind(request)
        is_padded = plan.padding is not None and not plan.padding.mask.all()
        asked = _Checked(None, len(plan.factors), is_padded, plan.heads is not None, plan.changed)
        with self._lock:
            known = self._checked.setdefault(kind, [])
            found = next((each for each in known if each.covers(asked)), None)
            if found is None:
                try:
                    with torch.random.fork_rng(devices=[]):
                        manner = self._verified(request, plan)
                except _NotComparedError:
                    return None
                changed = plan.changed.union(*(each.changed for each in known if each.manner == manner))
                found = asked._replace(manner=manner, changed=changed)
                known.insert(0, found)
            return found.manner

    def refuse(self, request: Request, plan: BatchPlan) -> None:
        """Remembers that the fused engine failed for a batch that the module answers."""
        with self._lock:
            failed = _Checked(None, 2, True, True, plan.changed)
            self._checked.setdefault(self._kind(request), []).insert(0, failed)

    def _kind(self, request: Request) -> tuple[Any, ...]:
        return *request.kind, _kind_of(request.batch), _is_even(request.batch, self._media)

    def _verified(self, request: Request, plan: BatchPlan) -> Manner | None:
        """Returns the first manner whose outputs are those of the module with each mixture's weights."""
        batch, rows = request.batch, np.arange(plan.count)
        if plan.count > _ROWS and request.has_rows and consists_of_rows(batch, plan.count):
            rows = _rows_to_compare(plan)
            batch = take_rows(batch, torch.from_numpy(rows), plan.count)
        own = plan.of_rows(rows)
        expected = {}
        for number, factors in enumerate(own.factors[:_MIXTURES]):
            try:
                expected[number] = self._grouped.under(
                    own.heads, len(rows), factors, lambda own: request.alone(own, copied(batch)), once=True
                )
            except NotByRowsError:
                return None
            except FlexswitchError:
                raise
            except Exception as error:  # the module takes no such rows, or no such batch, which then shows
                raise _NotComparedError from error
        for manner in (Manner(True, True), Manner(False, True), Manner(False, False)):
            if manner.skips and own.padding is None:
                continue
            try:
                suited = own if manner.skips else own.without_padding()
                found = request.checked(self._fused, copied(batch), suited, manner.moves)
            except FAILURES:
                continue
            if _agree(found, expected, own, manner.moves):
                return manner
        return None


def _rows_to_compare(plan: BatchPlan) -> Ids:
    """Returns rows of several mixtures, two of one, and the shortest and longest, in an order that moves."""
    first = np.unique(plan.mixture_of, return_index=True)[1][:_MIXTURES]
    more = [np.flatnonzero(plan.mixture_of == plan.mixture_of[first[0]])[:2]]
    if plan.padding is not None:
        lengths = plan.padding.mask.sum(1)
        more.append(np.array([lengths.argmin(), lengths.argmax()]))
    rows = np.unique(np.concatenate([first, *more]))
    return rows[np.argsort(-plan.mixture_of[rows], kind="stable")]


def _agree(found: Any, expected: Mapping[int, Any], plan: BatchPlan, has_moved: bool) -> bool:
    """Returns whether the rows of an output are those of the outputs under their mixtures."""
    tensors = list(_tensors(found, plan.count))
    alone = {number: list(_tensors(output, plan.count)) for number, output in expected.items()}
    mask = None if plan.padding is None else torch.from_numpy(plan.padding.mask)
    if any(len(others) != len(tensors) for others in alone.values()):
        return False
    for place, tensor in enumerate(tensors):
        others = {number: parts[place] for number, parts in alone.items()}
        if any(other.shape != tensor.shape for other in others.values()):
            return False
        axis = _row_axis(tensor, plan.count)
        if axis is None:  # such as a loss, or an item of one row
            if tensor.dim() and has_moved and not all(_is_close(tensor, other) for other in others.values()):
                return False
        elif not _rows_agree(tensor, others, axis, plan, mask):
            return False
    return True


def _rows_agree(
    tensor: Tensor, others: Mapping[int, Tensor], axis: int, plan: BatchPlan, mask: Tensor | None
) -> bool:
    """Returns whether the rows of each mixture are those of its own output."""
    for number, other in others.items():
        own = torch.from_numpy(np.flatnonzero(plan.mixture_of == number))
        if not _is_close(*(_rows_of(each, axis, plan.count, own, mask) for each in (tensor, other))):
            return False
    return True


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
        yield output.detach()
        return
    if isinstance(output, float | int):
        yield torch.tensor(float(output), dtype=torch.float64)
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
    exact = torch.isfinite(other)
    if not torch.equal(torch.isfinite(one), exact):
        return False
    if not exact.any():
        return True
    error, size = (one[exact].double() - other[exact].double()).abs(), other[exact].double().abs()
    is_rounded = torch.is_autocast_enabled(one.device.type) or one.dtype not in _TOLERANCE
    if is_rounded:
        return bool(error.mean() <= _MEAN_TOLERANCE * size.mean())
    return bool(error.max() <= _TOLERANCE[one.dtype] * size.max())


def _is_even(batch: Any, media: Sequence[int]) -> bool:
    """Returns whether all rows have as many images, or sounds, as the tokens for them tell."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    counts = [(ids == token).sum(-1) for token in media if ids is not None]
    return all(bool((count == count.view(-1)[:1]).all()) for count in counts)


def _kind_of(value: Any) -> Any:
    """Returns what of a batch decides how a module runs: its parts, their dimensions, and which are 1."""
    if isinstance(value, Tensor):
        return value.dim(), value.is_floating_point(), tuple(size == 1 for size in value.shape[1:3])
    if isinstance(value, Mapping):
        return tuple((name, _kind_of(part)) for name, part in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_kind_of(part) for part in value)
    return value if isinstance(value, bool | str | None) else type(value).__name__


def copied(value: Any) -> Any:
    """Returns a copy of a batch that shares no memory with it, as a module may change what it is given."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return like(value, {name: copied(part) for name, part in value.items()})
    if type(value) in (list, tuple):
        return type(value)(copied(part) for part in value)
    return copy.deepcopy(value)
