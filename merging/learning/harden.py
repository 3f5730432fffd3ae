"""Fits what is kept to the size that was asked for: at most that, and as near as the codecs' steps allow.

All thresholds are multiplied by one factor; what is kept is stored, measured, and the factor moved. Once most
entries are kept, to keep more of them takes fewer bytes, and the search ends at the most that it found. Where
many entries are equal (rows of an embedding that one step of Adam changed), the size jumps at their
threshold: then some rows take the threshold above, and the others the one below.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from flexswitch.merging.learning.unit import Hardened

_LEAST_SHARE = 0.97  # of the target: what is promised
_ENOUGH = 0.99  # where the search stops
_TRIES = 24
_FIRST_STEP = 0.02
_STEEPNESS = 5.0  # about how fast log bytes fall with the log of the thresholds, to begin with
_GROWTH = 1.4
_LARGEST_STEP = 0.7
_SAME = 1e-4  # shifts that are nearer than this part only what is equal
_PAST_MOST = 0.98  # of the largest size: where so little is found by keeping more, no more is to be had

Size = Callable[[Sequence[Hardened]], int]


def scaled(hardened: Sequence[Hardened], by: float) -> list[Hardened]:
    """Returns the same with all thresholds multiplied by e^by."""
    factor = np.float32(math.exp(by))
    return [replace(each, thresholds=each.thresholds * factor) for each in hardened]


def fit_to_size(hardened: Sequence[Hardened], size: Size, target: int) -> tuple[list[Hardened], int]:
    """Returns what is kept at the size nearest below the target, and that size.

    size: the bytes of the artifact. The target is more than what the artifact takes with nothing kept.
    """
    below: tuple[float, int] | None = None  # (shift, bytes) of the nearest size at most the target
    above: tuple[float, int] | None = None
    shift = 0.0
    for tried in range(_TRIES):
        found = size(scaled(hardened, shift))
        if found <= target:
            if below is not None and above is None and found < _PAST_MOST * below[1]:
                break
            if below is None or above is not None or found >= below[1]:
                below = (shift, found)
            if found >= _ENOUGH * target or shift <= -20:
                break
        else:
            above = (shift, found)
        if below is not None and above is not None and below[0] - above[0] < _SAME:
            break
        shift = _next_shift(shift, found, target, below, above, tried)
    if below is None:  # the file's own parts take nearly all
        nothing = [replace(each, thresholds=np.full_like(each.thresholds, np.inf)) for each in hardened]
        return nothing, size(nothing)
    fitted = scaled(hardened, below[0])
    if above is None or below[1] >= _ENOUGH * target:
        return fitted, below[1]
    return _between(fitted, below[1], scaled(hardened, above[0]), size, target)


def _between(
    less: list[Hardened], found: int, more: list[Hardened], size: Size, target: int
) -> tuple[list[Hardened], int]:
    """Returns the first rows by the thresholds that keep more, as many as the target takes; and the size."""
    best, rows, beyond = (less, found), 0, 1 + sum(len(each.thresholds) for each in less)
    while beyond - rows > 1 and best[1] < _ENOUGH * target:
        middle = (rows + beyond) // 2
        mixed = _mixed(less, more, middle)
        found = size(mixed)
        if found <= target:
            best, rows = (mixed, found), middle
        else:
            beyond = middle
    return best


def _mixed(less: Sequence[Hardened], more: Sequence[Hardened], rows: int) -> list[Hardened]:
    """Returns `more` for the first rows, counted over all units, and `less` for the others."""
    mixed = []
    for one, two in zip(less, more, strict=True):
        taken = min(max(rows, 0), len(one.thresholds))
        thresholds = np.concatenate([two.thresholds[:taken], one.thresholds[taken:]])
        mixed.append(replace(one, thresholds=thresholds))
        rows -= len(one.thresholds)
    return mixed


def is_met(found: int, target: int) -> bool:
    """Returns whether a size is the target as it is promised: at most that, and at least 97 % of it."""
    return _LEAST_SHARE * target <= found <= target


def _next_shift(
    shift: float,
    found: int,
    target: int,
    below: tuple[float, int] | None,
    above: tuple[float, int] | None,
    tried: int,
) -> float:
    aim = target * (1 + _ENOUGH) / 2
    if below is None or above is None:
        # Ever longer steps: a file's own parts may take most of it, and then its size falls slowly.
        step = math.log(max(found, 1) / aim) / _STEEPNESS * _GROWTH**tried
        least = math.copysign(_FIRST_STEP, step)
        return shift + max(-_LARGEST_STEP, min(_LARGEST_STEP, step if abs(step) > _FIRST_STEP else least))
    # Between the two, where a line through their logarithms meets the aim, but never near an end.
    low, high = math.log(below[1]), math.log(above[1])
    part = (math.log(aim) - low) / (high - low)
    return below[0] + (above[0] - below[0]) * min(max(part, 0.1), 0.9)
