"""Checks that the fused engine answers a kind of batch as the module does that has each mixture's weights.

A module may do what no list of its layers tells: read a weight without calling its layer, put tokens before
rows, read padding, keep a state, route tokens to experts, call compiled code. So a few rows of the first
batch of each kind are answered both ways, and their outputs compared (agreement.py): under all tasks of the
batch, under none, and under half of the first, by weights that change the outputs much.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.merging.switching.activations import Ids
from flexswitch.merging.switching.agreement import agree, distance
from flexswitch.merging.switching.batch_plan import BatchPlan
from flexswitch.merging.switching.batch_rows import consists_of_rows, copied, take_rows
from flexswitch.merging.switching.fused_engine import FusedEngine
from flexswitch.merging.switching.grouped_engine import GroupedEngine
from flexswitch.merging.switching.held_terms import nothing_held
from flexswitch.merging.switching.padding import Padding, config_of
from flexswitch.merging.switching.request import Request

_ROWS = 8  # of a batch that is compared as a whole
_KINDS = 1024  # that are remembered
# How far outputs under all tasks are from the base's, over their size: tasks are enlarged until it is enough.
_LEAST, _ENOUGH, _LARGEST = 0.01, 0.3, 1e4

_MEDIA = ("image_token_id", "image_token_index", "video_token_id", "audio_token_id", "audio_token_index")


Again = Callable[[], None]  # sets the random numbers to what they were


class Manner(NamedTuple):
    """How the fused engine may answer: whether layers skip padding, and rows of one mixture are joined."""

    skips: bool
    moves: bool


class _Checked(NamedTuple):
    """What a check has shown, None for no manner, and the batches for which it holds."""

    manner: Manner | None
    rows: int
    is_padded: bool
    has_heads: bool
    changed: frozenset[str]

    def suits(self, other: "_Checked") -> bool:
        """Returns whether it is about batches like another's, whatever their tasks change."""
        return (
            min(self.rows, 2) >= min(other.rows, 2)
            and (self.is_padded or not other.is_padded)
            and (self.has_heads or not other.has_heads)
        )


class _NotComparedError(Exception):
    """The module itself does not answer, or alike under all weights."""


class EngineCheck:
    """Which manner of the fused engine suits which kind of batch. Thread-safe: threads take turns."""

    def __init__(self, fused: FusedEngine, grouped: GroupedEngine) -> None:
        self._fused, self._grouped, self._lock = fused, grouped, RLock()
        config = config_of(fused.module)
        self._media = [token for name in _MEDIA if isinstance(token := getattr(config, name, None), int)]
        self._checked: dict[tuple[Any, ...], list[_Checked]] = {}

    def manner(self, request: Request, plan: BatchPlan, undecided: Manner | None = None) -> Manner | None:
        """Returns how the fused engine answers a batch, None where it does not.

        undecided: what is returned where the module answers no comparison, which the batch itself may show.
        """
        if not plan.changed and plan.heads is None:  # the base answers
            return Manner(skips=True, moves=False)
        is_padded = plan.padding is not None and not plan.padding.mask.all()
        asked = _Checked(None, plan.count, is_padded, plan.heads is not None, plan.changed)
        with self._lock:
            known = [each for each in self._known(request) if each.suits(asked)]
            found = next((each for each in known if each.changed >= asked.changed), None)
            if found is None:
                try:
                    with _same_randomness(self._fused.module) as again:
                        manner = self._verified(request, plan, again)
                except _NotComparedError:
                    return undecided
                changed = plan.changed.union(*(each.changed for each in known if each.manner == manner))
                found = asked._replace(manner=manner, changed=changed)
                self._known(request).insert(0, found)
            return found.manner

    def refuse(self, request: Request, plan: BatchPlan) -> None:
        """Remembers that the fused engine failed for a batch that the module answers."""
        with self._lock:
            self._known(request).insert(0, _Checked(None, 2, True, True, plan.changed))

    def _known(self, request: Request) -> list[_Checked]:
        """Returns what is known of batches of a kind."""
        device = next((tensor.device.type for tensor in self._fused.module.state_dict().values()), "cpu")
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        even = _is_even(request.batch, self._media)
        kind = (*request.kind, autocast, even, _kind_of(request.batch))
        if kind not in self._checked and len(self._checked) >= _KINDS:
            del self._checked[next(iter(self._checked))]
        return self._checked.setdefault(kind, [])

    def _verified(self, request: Request, plan: BatchPlan, again: Again) -> Manner | None:
        """Returns the first manner whose outputs are those of the module with each mixture's weights.

        Raises: _NotComparedError.
        """
        batch, rows = request.batch, np.arange(plan.count)
        if plan.count > _ROWS and request.has_rows and consists_of_rows(batch, plan.count):
            rows = _rows_to_compare(plan)
            batch = take_rows(batch, torch.from_numpy(rows), plan.count)
        own, expected = self._expected(request, batch, plan, rows, again)
        for manner in (Manner(True, True), Manner(False, True), Manner(False, False)):
            if manner.skips and own.padding is None:
                continue
            try:
                again()
                suited = own if manner.skips else own.without_padding()
                found = request.checked(self._fused, copied(batch), suited, manner.moves)
                if agree(found, expected, own):
                    return manner
            except (
                Exception
            ):  # whatever a module raises for the rows of a layer: this manner does not suit it
                continue
        return None

    def _expected(
        self, request: Request, batch: Any, plan: BatchPlan, rows: Ids, again: Again
    ) -> tuple[BatchPlan, Mapping[int, Any]]:
        """Returns the plan of a comparison, and the module's outputs under each of its mixtures.

        Raises: _NotComparedError where it does not answer, or alike by all weights that its dtype holds.
        """

        def alone(mixture: int) -> Any:
            head = None if own.heads is None else int(own.heads[own.mixture_of == mixture][0])
            again()
            return self._grouped.under(
                own.factors[mixture], head, lambda module: request.alone(module, copied(batch)), once=True
            )

        try:
            own = _plan_to_compare(plan, rows, 0.0)
            base = alone(0)
            factor, furthest = 1 / max(1, len(plan.deltas)) ** 0.5, 0.0
            while plan.deltas and furthest < _ENOUGH and factor <= _LARGEST:
                before, own = own, _plan_to_compare(plan, rows, factor)
                try:
                    far = distance(alone(0), base, len(rows))
                except InputError:  # the dtype does not hold such weights
                    far = -1.0
                if far < furthest:  # or weights so large give no numbers any more
                    own = before
                    break
                furthest = far
                factor *= max(2.0, _ENOUGH / max(far, _LEAST))
            if plan.deltas and furthest < _LEAST:
                raise _NotComparedError
            return own, {number: alone(number) for number in range(len(own.factors))}
        except _NotComparedError:
            raise
        except Exception as error:  # of the module, which the batch itself shows
            raise _NotComparedError from error


@contextmanager
def _same_randomness(module: torch.nn.Module) -> Iterator[Again]:
    """Gives a function that sets the generators of random numbers to what they are, as the end does."""
    devices = sorted({tensor.device.index for tensor in module.parameters() if tensor.device.type == "cuda"})
    python, arrays = random.getstate(), np.random.get_state()
    cpu, cuda = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices]

    def again() -> None:
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(cpu)
        for device, state in zip(devices, cuda, strict=True):
            torch.cuda.set_rng_state(state, device)

    try:
        yield again
    finally:
        again()


def _rows_to_compare(plan: BatchPlan) -> Ids:
    """Returns some rows, with the shortest and the longest."""
    rows = [np.arange(min(5, plan.count))]
    if plan.padding is not None:
        lengths = plan.padding.mask.sum(1)
        rows.append(np.array([lengths.argmin(), lengths.argmax()]))
    return np.unique(np.concatenate(rows))


def _plan_to_compare(plan: BatchPlan, rows: Ids, factor: float) -> BatchPlan:
    """Returns the plan of some rows, by turns of all tasks of a batch, of none, and of half as much of all.

    Each of these has a head of its own, if there are several.
    """
    mixtures = np.zeros((min(3, len(rows)), plan.mixtures.shape[1]), np.float32)
    mixtures[0, list(plan.deltas)], mixtures[2:, list(plan.deltas)] = factor, factor / 2
    turns = np.arange(len(rows)) % len(mixtures)
    heads = None
    if plan.heads is not None:
        own = np.union1d(plan.heads, np.arange(min(3, mixtures.shape[1])))
        heads = np.resize(own, len(mixtures))[turns]
    padding = None if plan.padding is None else Padding(plan.padding.mask[rows], least=0)
    terms = nothing_held(len(mixtures))
    return BatchPlan(mixtures, turns, plan.deltas, terms, heads, padding, plan.scale)


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
        return tuple(sorted({repr(_kind_of(part)) for part in value}))
    return value if isinstance(value, bool | int | str | None) else type(value).__name__


def versions_of(batch: Any) -> list[int] | None:
    """Returns how often each tensor of a batch was changed in place; None where it holds other objects."""
    if isinstance(batch, Tensor):
        return [0 if batch.is_inference() else batch._version]
    if isinstance(batch, Mapping):
        parts = [versions_of(part) for part in batch.values()]
        return None if None in parts else [count for part in parts for count in part or ()]
    return [] if isinstance(batch, bool | int | float | str | list | tuple | None) else None
